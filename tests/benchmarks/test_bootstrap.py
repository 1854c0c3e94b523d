import numpy as np
import pytest

from ruyi_rl.benchmarks.bootstrap import LEVEL, estimate, paired_difference, resamples


def covered(truth, draw, problems, runs=400, draws=400):
    """The share of runs whose interval holds the truth."""
    weights, random = resamples(problems, draws, seed=1), np.random.default_rng(2)
    found = [estimate(draw(random, problems), weights) for _ in range(runs)]
    return np.mean([each.low <= truth <= each.high for each in found])


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9])
def test_intervals_of_a_share_cover_at_their_level(rate):
    share = covered(rate, lambda random, n: (random.random(n) < rate).astype(float), problems=120)
    # The error of 400 runs is 1.1 points; the percentile interval is known to fall short by about one.
    assert LEVEL - 0.04 <= share <= LEVEL + 0.033


def test_intervals_of_pass_rates_cover_at_their_level():
    """Problems of different difficulty, 8 samples each."""

    def rates(random, n):
        return random.binomial(8, random.beta(0.6, 1.4, n)) / 8

    assert LEVEL - 0.04 <= covered(0.3, rates, problems=80) <= LEVEL + 0.033


def test_they_are_as_wide_as_theory_says():
    values = (np.random.default_rng(3).random(400) < 0.4).astype(float)
    found = estimate(values, resamples(400, 2000, seed=4))
    rate = values.mean()
    assert found.value == pytest.approx(rate)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(rate * (1 - rate) / 400), rel=0.08)


def test_equal_values_are_no_certainty():
    """All n right: 0.025^(1/n), as Clopper and Pearson have it."""
    weights = resamples(164, 200, seed=1)
    found = estimate(np.ones(164), weights)
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.025 ** (1 / 164))
    found = estimate(np.zeros(164), weights)
    assert (found.value, found.low) == (0.0, 0.0) and found.high == pytest.approx(1 - 0.025 ** (1 / 164))
    assert covered(0.99, lambda random, n: (random.random(n) < 0.99).astype(float), problems=20) > 0.9


def test_problems_without_a_value_are_left_out():
    values = np.array([1.0, 0.0, np.nan, 1.0, 0.0, np.nan])
    found = estimate(values, resamples(6, 3000, seed=1))
    assert found.value == 0.5 and found.low == 0.0 and found.high == 1.0
    nothing = estimate(np.full(3, np.nan), resamples(3, 100, seed=1))
    assert nothing.as_json() == {"value": None, "low": None, "high": None}


def test_the_seed_decides():
    values = np.random.default_rng(5).random(50)
    one, again, other = (estimate(values, resamples(50, 300, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert resamples(50, 300, 1).sum(axis=1).tolist() == [50] * 300


def test_paired_differences_cover_and_are_narrower_than_unpaired_ones():
    """Two exits that find the same problems hard."""
    weights, random = resamples(100, 400, seed=1), np.random.default_rng(6)
    other_weights = resamples(100, 400, seed=2)
    hits, paired_width, unpaired_width = [], [], []
    for _ in range(300):
        hard = random.random(100)
        deep, shallow = ((hard < rate).astype(float) for rate in (0.6, 0.5))
        flipped = random.random(100) < 0.1
        shallow = np.where(flipped, 1 - shallow, shallow)
        found = paired_difference(deep, shallow, weights)
        hits.append(found.low <= 0.1 <= found.high)  # 0.6 - (0.9 · 0.5 + 0.1 · 0.5)
        paired_width.append(found.high - found.low)
        spread = (weights @ deep - other_weights @ shallow) / 100
        unpaired_width.append(np.subtract(*np.quantile(spread, (0.975, 0.025))))
    assert 0.9 <= np.mean(hits) <= 0.985
    assert np.mean(paired_width) < 0.75 * np.mean(unpaired_width)
