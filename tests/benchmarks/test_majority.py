import math
import random
import time
from collections import Counter
from itertools import combinations, product

import pytest

from ruyi_rl.benchmarks.majority import Votes, alike, count_votes, majority_at_k
from ruyi_rl.rewards.mathematics.equality import Comparison, same_answer


def elected(chosen):
    """The chance that R is elected by one set of samples; None does not vote."""
    counts = Counter(vote for vote in chosen if vote is not None)
    if not counts:
        return 0.0
    leaders = [vote for vote, count in counts.items() if count == max(counts.values())]
    return ("R" in leaders) / len(leaders)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_mean_over_all_sets_of_k(seed):
    draw = random.Random(seed)
    samples = [draw.choice(["R", "a", "b", "c", None]) for _ in range(draw.randint(1, 8))]
    counts = Counter(samples)
    votes = Votes(counts["R"], tuple(sorted(counts[name] for name in "abc" if counts[name])), counts[None])
    for k in range(1, len(samples) + 1):
        sets = [elected(chosen) for chosen in combinations(samples, k)]
        assert majority_at_k(votes, k) == pytest.approx(sum(sets) / len(sets), abs=1e-12)


def test_it_is_unbiased_for_the_vote_of_fresh_samples():
    """Over every outcome of n samples of a problem with known chances, against every outcome of k samples."""
    chances = {"R": 0.4, "a": 0.35, "b": 0.15, None: 0.1}
    samples, k = 5, 3

    def mean(number, value):
        return sum(
            math.prod(chances[vote] for vote in drawn) * value(drawn) for drawn in product(chances, repeat=number)
        )

    def estimated(drawn):
        counts = Counter(drawn)
        return majority_at_k(Votes(counts["R"], tuple(counts[name] for name in "ab"), counts[None]), k)

    assert mean(samples, estimated) == pytest.approx(mean(k, elected))


def test_one_vote_and_two_with_ties_split_are_a_sample():
    votes = Votes(2, (3, 1), 0)
    assert majority_at_k(votes, 1) == majority_at_k(votes, 2) == pytest.approx(2 / 6)


def test_many_samples_are_counted_and_too_few_tell_nothing():
    assert majority_at_k(Votes(40, (12, 12), 0), 64) == 1.0
    assert 0.5 < majority_at_k(Votes(30, (20, 14), 0), 32) < 1.0
    assert math.isnan(majority_at_k(Votes(1, (), 0), 2))
    assert majority_at_k(Votes(0, (), 3), 3) == 0.0, "nobody votes"


def test_right_answers_are_one_and_wrong_ones_are_compared():
    answers = ["1/2", "0.5", "\\frac{1}{2}", "7", "7.0", "8", "", "x"]
    right = [True, True, True, False, False, False, False, False]
    assert count_votes(answers, right) == Votes(3, (1, 1, 2), 1)
    assert count_votes(["", ""], [False, True]) == Votes(1, (), 1), "the judge may know more than it tells"


def test_answers_are_alike_by_text_numbers_and_structure_but_not_by_algebra():
    assert alike("\\frac{3}{4}", "0.75") and alike("(1, 2)", "( 1,2 )") and alike("1,000", "1000")
    assert not alike("3", "4") and not alike("(1,2)", "(2,1)")
    assert not alike("(x+1)^2", "x^2+2x+1"), "sympy is not asked"


def test_integers_are_compared_as_all_answers_are():
    integers = ["7", "-7", "07", "10", "010", "123456789012345678"]
    for one, other in combinations(integers, 2):
        compared = (same_answer(*pair, Comparison(deadline=0.0)) for pair in ((one, other), (other, one)))
        assert alike(one, other) == any(compared), (one, other)


def test_many_different_answers_take_no_time():
    """Each of 128 samples another answer: comparing and counting them took seconds a problem."""
    votes = count_votes([str(1000 + n) for n in range(128)], [n < 40 for n in range(128)])
    start = time.perf_counter()
    assert majority_at_k(votes, 64) > 0.999
    assert votes == Votes(40, (1,) * 88, 0) and time.perf_counter() - start < 0.3
