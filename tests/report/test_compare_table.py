"""The comparison of runs: what differs, what is aggregated, how it is written."""

import csv
import io
import math

import pytest
from rich.console import Console

from ruyi_rl.report.compare.metrics import GREEDY, PASS, SECONDS, chosen_metrics, default_metrics
from ruyi_rl.report.compare.output import as_csv, as_json, markdown, override_text, rich_table
from ruyi_rl.report.compare.plot import draw_comparison
from ruyi_rl.report.compare.runs import ComparedRun, without_seed
from ruyi_rl.report.compare.table import aggregate, compare, differing_keys, short_keys
from ruyi_rl.report.summary_values import found_values, number_paths


def grpo(rate, seed, before=(0.2, 0.4), after=(0.5, 0.6)):
    exits = {
        name: {"pass_before": b, "pass_after": a, "greedy_before": b, "greedy_after": a}
        for name, b, a in zip(("small", "1.7B"), before, after)
    }
    values = {"grpo.trainer.learning_rate": rate, "data.name": "x"}
    return ComparedRun(
        f"r{rate}-{seed}", f"runs/{rate}-{seed}", "grpo", seed, values, {}, {"exits": exits, "seconds": 60.0 * seed}
    )


def test_numbers_are_found_by_path():
    tree = {"exits": {"a": {"x": 1, "y": None}, "1.7B": {"x": 2.5, "z": True}}, "seconds": 3, "n": float("nan")}
    assert found_values(tree, "exits.*.x") == {("a",): 1.0, ("1.7B",): 2.5}
    assert found_values(tree, "exits.1.7B.x") == {(): 2.5}
    assert found_values(tree, "seconds") == {(): 3.0}
    assert found_values(tree, "exits.*.y") == found_values(tree, "n") == found_values(tree, "exits.*.z") == {}
    assert number_paths(tree) == ["exits.a.x", "exits.1.7B.x", "seconds"]


def test_seeds_are_aggregated_as_mean_and_standard_error():
    cell = aggregate([(0.1, 0.5), (0.2, 0.9), (0.3, 0.7)])
    assert cell.n == 3 and cell.mean == pytest.approx(0.7) and cell.before == pytest.approx(0.2)
    assert cell.standard_error == pytest.approx(0.2 / math.sqrt(3))
    # Of the changes 0.4, 0.7, 0.4: the runs are paired with themselves.
    assert cell.change == pytest.approx(0.5) and cell.change_standard_error == pytest.approx(0.1)
    assert aggregate([(None, 0.5)]) == aggregate([(None, 0.5)]).__class__(1, 0.5, None)


def test_runs_that_differ_in_their_seed_alone_are_one_line():
    runs = [grpo(1e-5, 1), grpo(1e-5, 2, after=(0.7, 0.8)), grpo(1e-6, 1)]
    table = compare(runs, [PASS, GREEDY, SECONDS])
    assert table.keys == ["grpo.trainer.learning_rate"] and table.exits == ["small", "1.7B"]
    assert [(group.overrides, group.seeds) for group in table.groups] == [
        ({"grpo.trainer.learning_rate": 1e-5}, [1, 2]),
        ({"grpo.trainer.learning_rate": 1e-6}, [1]),
    ]
    cell = table.groups[0].cells["pass rate", "small"]
    assert (cell.mean, cell.before) == (pytest.approx(0.6), pytest.approx(0.2))
    lines = markdown(table).splitlines()
    assert lines[0] == "| learning_rate | n | exit | pass rate | greedy | seconds |"
    assert lines[2] == "| 1e-05 | 2 | small | 20.0 → 60.0 (+40.0 ± 10.0) | 20.0 → 60.0 (+40.0 ± 10.0) | 1:30 |"
    assert lines[3].startswith("|  |  | 1.7B | 40.0 → 70.0 (+30.0 ± 10.0) |") and lines[3].endswith("|  |")
    assert lines[4] == "| 1e-06 | 1 | small | 20.0 → 50.0 (+30.0) | 20.0 → 50.0 (+30.0) | 1:00 |"


def test_what_a_sweep_typed_names_the_columns_and_missing_runs_are_listed():
    runs = [grpo(1e-5, 1), grpo(1e-6, 1)]
    for run, data in zip(runs, ("gsm8k", "math")):
        run.swept = {"data": data}
    gone = ComparedRun("job 3 (data=a|b)", None, "grpo", status="refused", message="data: no such choice")
    table = compare([*runs, gone], [PASS])
    assert table.keys == ["data"] and [group.overrides["data"] for group in table.groups] == ["gsm8k", "math"]
    assert "- job 3 (data=a|b) refused: data: no such choice" in markdown(table)
    assert as_json(table)["missing"][0]["message"] == "data: no such choice"


def test_what_several_sweeps_typed_does_not_hide_what_else_differs(tmp_path):
    runs = [grpo(rate, seed) for rate in (1e-5, 1e-6) for seed in (1, 2)]
    for place, run in enumerate(runs):
        run.swept, run.sweep = {"beta": "0.1"}, tmp_path / "ab"[place // 2]
    table = compare(runs, [PASS])
    assert table.keys == ["grpo.trainer.learning_rate"] and [len(group.runs) for group in table.groups] == [2, 2]
    for run in runs:
        run.sweep = tmp_path
    assert compare(runs, [PASS]).keys == []


def test_a_change_is_of_the_same_runs_before_and_after():
    assert aggregate([(0.0, 0.5), (None, 0.7)]) == aggregate([(None, 0.5), (None, 0.7)])
    part = grpo(1e-5, 2, after=(0.7, 0.8))
    part.summary["exits"]["small"]["pass_before"] = part.summary["exits"]["1.7B"]["pass_after"] = None
    lines = markdown(compare([part, grpo(1e-5, 1)], [PASS])).splitlines()
    assert lines[2] == "| 2 | small | 60.0 ± 10.0 |" and lines[3] == "|  | 1.7B | 40.0 → 60.0 (+20.0) (n=1) |"


def test_exits_stand_in_the_order_of_the_family():
    part, whole = grpo(1e-5, 1), grpo(1e-6, 1)
    part.summary["exits"]["small"] = {"pass_after": None}
    assert compare([part, whole], [PASS]).exits == ["small", "1.7B"]
    del part.summary["exits"]["small"]
    assert compare([part, whole], [PASS]).exits == ["small", "1.7B"]
    assert compare([part], [PASS]).exits == ["1.7B"]


def test_keys_that_differ_in_the_same_places_are_one_column():
    values = [{"a": 1, "b": [1], "c": 0}, {"a": 2, "b": [2], "c": 0}, {"a": 1, "b": [1], "c": 0, "d": 5}]
    assert differing_keys(values) == (["a", "d"], {"a": ["b"]})
    # What only the run before knows does not stand for it.
    values = [{"model": "x", "steps": 1}, {"steps": 2, "start_from": "y"}]
    assert differing_keys(values) == (["start_from"], {"start_from": ["steps", "model"]})
    assert short_keys(["x.rate", "y.rate", "y.z.beta"]) == {"x.rate": "x.rate", "y.rate": "y.rate", "y.z.beta": "beta"}


def test_families_of_several_seeds_are_one_start():
    assert without_seed("runs/sft-seed1/sft", 1) == without_seed("runs/sft-seed12/sft", 12) == "runs/sft-seed*/sft"
    assert without_seed("runs/a12/sft", 1) == "runs/a12/sft"


def test_metrics_follow_from_the_summaries():
    sft = {"exits": {"a": {"loss_first": 2.0, "loss_last": 1.0}}, "seconds": 1}
    assert [metric.label for metric in default_metrics([sft])] == ["loss", "seconds"]
    assert [metric.label for metric in default_metrics([grpo(1, 1).summary])] == ["pass rate", "greedy", "seconds"]
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluated = {
        "exits": {"a": {"pass": 0.5, "greedy": 0.5}},
        "benchmarks": {"gsm8k": {"exits": {"a": {"greedy": score, "pass@1": {**score, "value": None}}}}},
        "harness": {"mmlu": {"metric": "acc", "exits": {"a": {"value": 0.3, "standard_error": 0.1}}}},
    }
    found = {metric.label: metric for metric in default_metrics([evaluated])}
    assert list(found) == ["gsm8k greedy", "mmlu", "seconds"]
    assert found["mmlu"].values(evaluated) == {"a": (None, 0.3)}
    (chosen,) = chosen_metrics(["exits.*.reward_last"], [])
    assert (chosen.label, chosen.share) == ("reward_last", False)


def test_written_forms_hold_the_same_numbers(tmp_path):
    table = compare([grpo(1e-5, 1), grpo(1e-5, 2), grpo(1e-6, 1)], [PASS, SECONDS])
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == 6 and rows[2]["seed"] == "2" and rows[2]["exit"] == "small"
    assert [float(rows[1][name]) for name in ("pass rate before", "pass rate", "seconds")] == [0.4, 0.6, 60.0]
    results = as_json(table)["groups"][1]["results"]
    assert {(each["metric"], each["exit"]) for each in results} == {
        ("pass rate", "small"),
        ("pass rate", "1.7B"),
        ("seconds", None),
    }
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    console.print(rich_table(table))
    assert "20.0 → 50.0 (+30.0 ± 0.0)" in console.export_text()
    assert draw_comparison(table, tmp_path / "compare.png", "runs")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_comparison(compare([grpo(1, 1)], [SECONDS]), tmp_path / "no.png", "")


def test_drawn_numbers_are_shown_with_four_digits():
    assert [override_text(value) for value in ("0.0006824078427", 1e-5, "0.001", None, "a")] == [
        "0.0006824",
        "1e-05",
        "0.001",
        "–",
        "a",
    ]
