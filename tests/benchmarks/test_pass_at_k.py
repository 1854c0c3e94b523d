import math
from itertools import combinations

import pytest

from ruyi_rl.benchmarks.pass_at_k import pass_at_k, powers_of_two


@pytest.mark.parametrize("samples", range(1, 8))
def test_it_is_the_share_of_the_sets_of_k_with_a_right_one(samples):
    for right in range(samples + 1):
        verdicts = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            sets = [any(chosen) for chosen in combinations(verdicts, k)]
            assert pass_at_k(samples, right, k) == pytest.approx(sum(sets) / len(sets))


def test_it_is_unbiased_where_the_plug_in_is_not():
    """Over every draw of n samples of a problem with a known pass rate p: the mean is 1 - (1 - p)^k."""
    samples, rate, k = 6, 0.3, 4
    chances = [math.comb(samples, c) * rate**c * (1 - rate) ** (samples - c) for c in range(samples + 1)]
    mean = sum(chance * pass_at_k(samples, c, k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - rate) ** k)
    plug_in = sum(chance * (1 - (1 - c / samples) ** k) for c, chance in enumerate(chances))
    assert abs(plug_in - mean) > 0.02


def test_too_few_samples_tell_nothing():
    assert math.isnan(pass_at_k(3, 1, 4))
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


def test_the_usual_ks():
    assert powers_of_two(1) == [1] and powers_of_two(8) == [1, 2, 4, 8] and powers_of_two(9) == [1, 2, 4, 8]
