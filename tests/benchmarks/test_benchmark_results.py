"""From answers to metrics: against counts by hand."""

import json
import math
import random

import pytest

from ruyi_rl import ranks
from ruyi_rl.benchmarks.answers import Draft
from ruyi_rl.benchmarks.results import benchmark_result, problem_rows
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.evaluation import evaluate

ROWS = [{"prompt": f"{n}=", "answer": str(n)} for n in range(40)]
SKILL = {"small": 0.25, "large": 0.55}
PARAMETERS = {"small": 100, "large": 1000}
ASKED = {"pass_at": [1, 4], "draws": 300, "seed": 1}


class Guesser:
    """Right by an exit's chance; sure of itself where it is right. Wrong answers are one of two."""

    def __init__(self, samples=4, log_probs=True):
        self.samples, self.log_probs = samples, log_probs

    def prompt_tokens(self, problem):
        return 5

    def drafts(self, exit, problems, greedy):
        return [
            [
                self.draft(random.Random(f"{exit} {problem} {greedy} {n}"), exit, problem)
                for n in range(1 if greedy else self.samples)
            ]
            for problem in problems
        ]

    def draft(self, draw, exit, problem):
        right = draw.random() < SKILL[exit]
        text = str(problem) if right else draw.choice(["x", "y"])
        log_prob = (-0.1 if right else -1.0) - draw.random() if self.log_probs else None
        return Draft(text, [0] * draw.randint(1, 6), draw.random() < 0.9, log_prob)


def judge(completions, answer, log_extra, **columns):
    log_extra("judge/answer", list(completions))
    return [None if gold == "7" else float(text == gold) for text, gold in zip(completions, answer)]


def measured(answers=None, judge=judge, exits=SKILL):
    return evaluate(ROWS, range(len(ROWS)), answers or Guesser(), Judge(judge), list(exits))


@pytest.fixture(scope="module")
def result():
    return benchmark_result(measured(), PARAMETERS, **ASKED)


def test_values_equal_a_count_by_hand(result):
    found = measured()["large"].problems
    judged = [each for each in found if each.problem != 7]
    rates = [sum(sample.text == str(each.problem) for sample in each.samples) for each in judged]
    values = result["exits"]["large"]
    assert values["pass@1"]["value"] == pytest.approx(sum(rates) / 4 / 39)
    assert values["pass@4"]["value"] == pytest.approx(sum(rate > 0 for rate in rates) / 39)
    assert values["greedy"]["value"] == pytest.approx(sum(e.greedy.text == str(e.problem) for e in judged) / 39)
    votes = 0.0
    for each in judged:
        texts = [sample.text for sample in each.samples]
        leaders = [t for t in set(texts) if texts.count(t) == max(map(texts.count, texts))]
        votes += (str(each.problem) in leaders) / len(leaders)
    assert values["maj@4"]["value"] == pytest.approx(votes / 39)
    tokens = [sample.tokens for each in found for sample in each.samples]
    assert values["mean_tokens"] == pytest.approx(sum(tokens) / 160)
    assert values["cost"] == pytest.approx(2e-12 * 1000 * (5 + sum(tokens) / 160))
    assert values["failures"] == 5 and result["problems"] == 40 and result["samples"] == 4
    for metric in ("greedy", "pass@1", "pass@4", "maj@4"):
        assert 0 <= values[metric]["low"] < values[metric]["value"] < values[metric]["high"] <= 1


def test_differences_are_of_the_deeper_exit_less_the_shallower(result):
    greedy, rate = result["differences"]
    assert greedy["exits"] == rate["exits"] == ["large", "small"]
    assert (greedy["metric"], rate["metric"]) == ("greedy", "pass@1")
    exits = result["exits"]
    assert rate["value"] == pytest.approx(exits["large"]["pass@1"]["value"] - exits["small"]["pass@1"]["value"])
    assert 0 < rate["low"] < rate["value"] < rate["high"]


def test_routing_is_told(result):
    routing = result["routing"]
    assert routing["problems"] == 39 and sum(routing["cheapest_right"].values()) == 39
    solved = sum(
        any(each.greedy.right for each in row)
        for row in zip(*(found.problems for found in measured().values()), strict=True)
        if row[0].problem != 7
    )
    assert routing["oracle"]["accuracy"]["value"] == pytest.approx(solved / 39)
    assert routing["frontier"][-1] == {"accuracy": pytest.approx(solved / 39), "cost": routing["oracle"]["cost"]}
    assert routing["exits"]["small"]["accuracy"] == result["exits"]["small"]["greedy"]["value"]
    rule = routing["confidence"]
    assert rule["problems"] == {"chosen_on": 19, "reported_on": 20}
    assert sum(rule["chosen"]["shares"].values()) == pytest.approx(1.0)
    assert 0 < rule["chosen"]["shares"]["small"] < 1, "it is sure where it is right"


def test_what_is_not_known_is_left_out_and_all_is_json():
    def silent(completions, answer, **columns):
        return judge(completions, answer, lambda name, values: None)

    found = benchmark_result(measured(Guesser(log_probs=False), silent), {}, **ASKED)
    assert not any(key.startswith("maj") for key in found["exits"]["small"])
    assert found["exits"]["small"]["cost"] is None and "routing" not in found
    found = benchmark_result(measured(Guesser(log_probs=False)), PARAMETERS, **ASKED)
    assert found["routing"]["confidence"] is None and found["routing"]["oracle"]["cost"] > 0
    nothing = benchmark_result(measured(judge=lambda completions, **_: [None] * len(completions)), PARAMETERS, **ASKED)
    assert nothing["exits"]["small"]["pass@1"] == {"value": None, "low": None, "high": None}
    assert nothing["differences"] == [] and "routing" not in nothing
    for each in (found, nothing):
        json.loads(json.dumps(each, allow_nan=False))


def test_greedy_answers_alone_have_no_mean_of_samples():
    found = benchmark_result(measured(Guesser(samples=0)), PARAMETERS, **ASKED)
    assert found["samples"] == 0 and found["exits"]["small"]["greedy"]["value"] > 0
    assert found["exits"]["small"]["mean_tokens"] is None and found["exits"]["small"]["truncated"] is None


def test_exits_are_tried_by_their_cost_and_it_beats():
    beats = []
    found = benchmark_result(measured(), {"small": 2000, "large": 1000}, **ASKED, beat=lambda: beats.append(1))
    assert list(found["routing"]["confidence"]["chosen"]["thresholds"]) == ["large"]
    assert len(beats) == 2 * len(ROWS)


def test_without_ks_the_powers_of_two_that_every_problem_has():
    found = benchmark_result(measured(Guesser(samples=5)), PARAMETERS, None, 100, 1)
    assert [key for key in found["exits"]["small"] if "@" in key] == ["pass@1", "pass@2", "pass@4", "maj@4"]
    assert math.isclose(found["exits"]["small"]["pass@1"]["value"], 0.25, abs_tol=0.12)


def test_one_exit_has_nothing_to_be_compared_or_routed_with():
    found = benchmark_result(measured(exits=["large"]), PARAMETERS, **ASKED)
    assert found["differences"] == [] and "routing" not in found


def test_rows_hold_the_verdicts_of_each_problem():
    rows = problem_rows(measured())
    assert [row["problem"] for row in rows] == list(range(40))
    assert rows[7]["exits"]["small"]["judged"] == 0 and rows[7]["exits"]["small"]["greedy"] is None
    assert all(row["exits"]["large"]["judged"] == 4 for row in rows if row["problem"] != 7)


def test_several_ranks_find_what_one_finds(monkeypatch, result):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: 3)
        asked = []
        monkeypatch.setattr(ranks, "gathered", lambda value, asked=asked: asked.append(value) or [value])
        measured()
        shares.append(asked)
    everyones = iter(zip(*shares, strict=True))
    monkeypatch.setattr(ranks, "gathered", lambda value: list(next(everyones)))
    pooled = benchmark_result(measured(), PARAMETERS, **ASKED)
    for found in (pooled, result):
        for values in found["exits"].values():
            values.pop("seconds", None)
    assert pooled == result
