"""The harness's result dictionaries as the numbers of a summary."""

import numpy as np
import pytest

from ruyi_rl.benchmarks.bootstrap import estimate, resamples
from ruyi_rl.harness.results import by_task, exit_scores, main_metric, reported_tasks

RESULTS = {
    "results": {
        "group": {"alias": "group", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "part_a": {"alias": " - part_a", "acc,none": 0.4, "acc_stderr,none": 0.1},
        "part_b": {"alias": " - part_b", "acc,none": 0.6, "acc_stderr,none": 0.1},
        "alone": {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.99, "exact_match_stderr,x": "N/A"},
        "tagged": {"acc,none": 0.0, "acc_norm,none": 0.25, "acc_norm_stderr,none": 0.02},
        "empty": {"alias": "empty", "acc,none": "N/A"},
    },
    "group_subtasks": {"group": ["part_a", "part_b"]},
    "n-samples": {name: {"original": 9, "effective": 4} for name in ("part_a", "part_b", "alone", "tagged")},
}


def test_groups_hide_their_parts_and_tags_become_their_tasks():
    assert reported_tasks(RESULTS, ["alone", "group", "some_tag"]) == ["alone", "group", "tagged", "empty"]


def test_scores():
    scores = exit_scores(RESULTS, ["group", "alone", "tag"])
    assert scores["group"] == {
        "metric": "acc",
        "value": 0.5,
        "standard_error": 0.1,
        "low": pytest.approx(0.304, abs=1e-4),
        "high": pytest.approx(0.696, abs=1e-4),
        "problems": 8,
    }
    assert scores["alone"]["metric"] == "exact_match, flexible-extract" and scores["alone"]["standard_error"] is None
    assert scores["tagged"]["metric"] == "acc_norm" and scores["tagged"]["low"] == pytest.approx(0.2108, abs=1e-4)
    assert "empty" not in scores


def test_an_interval_of_a_share_stays_one():
    sure = {"results": {"t": {"acc,none": 0.99, "acc_stderr,none": 0.05}}, "n-samples": {}}
    assert exit_scores(sure, ["t"])["t"]["high"] == 1.0
    large = {"results": {"t": {"word_perplexity,none": 20.0, "word_perplexity_stderr,none": 1.0}}}
    assert exit_scores(large, ["t"])["t"]["high"] == pytest.approx(21.96, abs=0.01)


def test_answers_that_are_all_alike_do_not_claim_certainty():
    """0 of 20 and 20 of 20: the bounds of bootstrap.estimate, which the benchmarks have."""
    weights = resamples(20, 100, 1)
    for value in (0.0, 1.0):
        all_alike = {
            "results": {"t": {"acc,none": value, "acc_stderr,none": 0.0}},
            "n-samples": {"t": {"effective": 20}},
        }
        found, expected = exit_scores(all_alike, ["t"])["t"], estimate(np.full(20, value), weights)
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
        assert found["high"] - found["low"] > 0.1


def test_the_main_metric():
    assert main_metric({"bleu,none": 3.0, "acc,none": 0.5}) == ("acc", "none")
    assert main_metric({"bleu_stderr,none": 0.1, "bleu,none": 3.0}) == ("bleu", "none")
    assert main_metric({"alias": "x"}) is None


def test_tasks_stand_before_exits():
    scores = {"small": exit_scores(RESULTS, ["group"]), "large": {}}
    found = by_task(scores)
    assert found["group"]["metric"] == "acc" and list(found["group"]["exits"]) == ["small"]
    assert "metric" not in found["group"]["exits"]["small"]
