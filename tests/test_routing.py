import numpy as np
import pytest

from ruyi_rl.routing import (
    Point,
    answering_exits,
    best_policy,
    candidate_thresholds,
    cheapest_right,
    confidence_policies,
    oracle_frontier,
    pareto,
    routed,
    seeded_half,
    single_exits,
)

# Five problems, three exits. The fourth is solved by nobody; the small exit is wordy on the last.
RIGHT = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=bool)
COST = np.array([[1, 2, 4], [1, 2, 4], [1, 2, 4], [1, 2, 4], [6, 2, 4]], dtype=float)
CONFIDENCE = np.array([[-0.1, -0.1, -0.1], [-0.9, -0.2, -0.1], [-0.8, -0.7, -0.1], [-0.6, -0.1, -1], [-0.2, -0.9, -1]])


def test_each_exit_alone():
    assert single_exits(RIGHT, COST) == [Point(0.4, 2.0), Point(0.4, 2.0), Point(0.8, 4.0)]


def test_the_cheapest_right_exit_need_not_be_the_shallowest():
    assert cheapest_right(RIGHT, COST).tolist() == [0, 1, 2, -1, 2]


def test_the_oracles_frontier_by_hand():
    """All at their cheapest: 1 + 1 + 1 + 1 + 2 solves one; then it pays 1 for the second, 2 for the last, 3 for the
    third."""
    assert oracle_frontier(RIGHT, COST) == [
        Point(1 / 5, 6 / 5),
        Point(2 / 5, 7 / 5),
        Point(3 / 5, 9 / 5),
        Point(4 / 5, 12 / 5),
    ]


def test_the_frontier_is_the_best_of_all_assignments():
    draw = np.random.default_rng(1)
    right, cost = draw.random((5, 3)) < 0.5, draw.random((5, 3)).round(2) + 0.1
    best = {}
    for number in range(3**5):
        chosen = [number // 3**problem % 3 for problem in range(5)]
        solved = int(right[range(5), chosen].sum())
        best[solved] = min(best.get(solved, np.inf), cost[range(5), chosen].sum() / 5)
    found = {round(point.accuracy * 5): point.cost for point in oracle_frontier(right, cost)}
    assert max(found) == max(best)
    for solved, spent in found.items():
        assert spent == pytest.approx(min(cost for other, cost in best.items() if other >= solved))


def test_the_rule_pays_for_every_exit_that_it_tried():
    thresholds = (-0.5, -0.5)
    assert answering_exits(CONFIDENCE, thresholds).tolist() == [0, 1, 2, 1, 0]
    # 1, 1 + 2, 1 + 2 + 4, 1 + 2, 6; right but for the fourth.
    assert routed(RIGHT, COST, CONFIDENCE, thresholds) == Point(4 / 5, 20 / 5)
    assert routed(RIGHT, COST, CONFIDENCE, (-np.inf, 0.0)) == single_exits(RIGHT, COST)[0]
    everything = routed(RIGHT, COST, CONFIDENCE, (0.0, 0.0))
    assert everything.accuracy == 0.8 and everything.cost == pytest.approx(COST.sum() / 5)
    assert answering_exits(CONFIDENCE, (-0.1, np.inf)).tolist() == [0, 2, 2, 2, 2], "at the threshold is accepted"


def test_an_exit_that_the_rule_never_accepts_is_not_run():
    """Small's answer where its confidence is above -0.5, else large's: medium is asked for nothing."""
    rule = routed(RIGHT, COST, CONFIDENCE, [-0.5, np.inf])
    assert rule == Point(4 / 5, (1 + (1 + 4) * 3 + 6) / 5)
    assert routed(RIGHT, COST, CONFIDENCE, [np.inf, np.inf]) == single_exits(RIGHT, COST)[-1]


def test_pareto_points():
    points = [Point(0.5, 2.0), Point(0.4, 1.0), Point(0.5, 1.5), Point(0.3, 1.2), Point(0.9, 5.0)]
    assert pareto(points) == [1, 2, 4]


def test_thresholds_are_chosen_on_one_half_and_reported_on_the_other():
    draw = np.random.default_rng(2)
    right = draw.random((400, 3)) < (0.5, 0.6, 0.7)
    cost = np.array([1.0, 2.0, 4.0]) * np.ones((400, 1))
    confidence = right - 0.7 * draw.random((400, 3))  # tells much, not all
    half = seeded_half(400, 1)
    policies = confidence_policies(right, cost, confidence, half)
    for policy in policies:
        assert policy.chosen_on == routed(right[half], cost[half], confidence[half], policy.thresholds)
        assert policy.found == routed(right[~half], cost[~half], confidence[~half], policy.thresholds)
        answering = answering_exits(confidence[~half], policy.thresholds)
        assert policy.shares == pytest.approx([(answering == exit).mean() for exit in range(3)])
    places = [(policy.chosen_on.cost, policy.chosen_on.accuracy) for policy in policies]
    assert places == sorted(places) and len({accuracy for _, accuracy in places}) == len(places)
    alone = single_exits(right[~half], cost[~half])[2]
    chosen = best_policy(policies, single_exits(right[half], cost[half])[2].accuracy)
    assert chosen.found.accuracy > alone.accuracy - 0.05 and chosen.found.cost < 0.8 * alone.cost
    swapped = right.copy()
    swapped[~half] = ~swapped[~half]
    assert [p.thresholds for p in confidence_policies(swapped, cost, confidence, half)] == [
        p.thresholds for p in policies
    ], "the other half has no say"


def test_nothing_as_accurate_gives_the_most_accurate_rule():
    policies = confidence_policies(RIGHT, COST, CONFIDENCE, np.array([True, False, True, False, True]))
    assert best_policy(policies, 2.0) == policies[-1]


@pytest.mark.parametrize("exits", [2, 3, 6])
def test_candidates_stay_few_and_hold_both_ends(exits):
    levels = candidate_thresholds(np.random.default_rng(3).random((500, exits)))
    assert np.prod([len(each) for each in levels]) <= 4096 and len(levels) == exits - 1
    assert all(each[0] == -np.inf and each[-1] == np.inf for each in levels)


def test_the_seed_draws_the_half():
    assert seeded_half(9, 1).sum() == 4 and (seeded_half(50, 1) != seeded_half(50, 2)).any()
    assert (seeded_half(50, 1) == seeded_half(50, 1)).all()
