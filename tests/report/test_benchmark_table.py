"""What a benchmark came to, as it is printed."""

from io import StringIO

import pytest
from rich.console import Console

from ruyi_rl.report.benchmark_table import flop_unit, print_benchmarks, told_benchmark
from ruyi_rl.report.routing_plot import draw_routing

HALF = {"value": 0.5, "low": 0.4, "high": 0.62}
NONE = {"value": None, "low": None, "high": None}
PLAIN = {"mean_tokens": 12.34, "truncated": 0.25, "seconds": 3.0, "cost": 2e-3, "failures": 0}
ALONE = {"s[m]all": {"accuracy": 0.5, "cost": 1e-3}, "large": {"accuracy": 0.75, "cost": 4e-3}}
RULE = {"accuracy": 0.7, "cost": 2e-3, "thresholds": {"s[m]all": -0.5}, "chosen_on": {"accuracy": 0.8, "cost": 2e-3}}
RESULT = {
    "problems": 40,
    "samples": 4,
    "temperature": 1.0,
    "left_out": 2,
    "exits": {
        "s[m]all": {"greedy": HALF, "pass@1": HALF, **PLAIN, "failures": 3},
        "large": {"greedy": HALF, "pass@1": HALF, "maj@4": HALF, **PLAIN, "cost": None},
    },
    "differences": [
        {"exits": ["large", "s[m]all"], "metric": "greedy", "value": 0.25, "low": 0.1, "high": 0.4},
        {"exits": ["large", "s[m]all"], "metric": "pass@1", "value": 0.0, "low": -0.1, "high": 0.1},
    ],
    "routing": {
        "exits": ALONE,
        "oracle": {"accuracy": HALF, "cost": 1.5e-3},
        "frontier": [{"accuracy": 0.4, "cost": 1e-3}, {"accuracy": 0.5, "cost": 1.5e-3}],
        "confidence": {
            "problems": {"chosen_on": 20, "reported_on": 20},
            "exits": ALONE,
            "best_exit": "large",
            "chosen": RULE | {"shares": {"s[m]all": 0.6, "large": 0.4}},
            "curve": [RULE],
        },
    },
}


def shown(**results):
    console = Console(file=StringIO(), width=100)
    print_benchmarks(console, results)
    return console.file.getvalue()


def test_metrics_differences_and_routing_are_told():
    text = shown(sums=RESULT)
    assert "sums · 40 problems, 2 left out · 4 samples at temperature 1" in text
    cells = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:4]]
        for line in text.splitlines()
        if "│" in line
    }
    assert cells["greedy"] == ["50.0 % [40.0, 62.0]"] * 2 and cells["maj@4"] == ["–", "50.0 % [40.0, 62.0]"]
    assert cells["GFLOP an answer"] == ["2", "–"] and cells["not judged"] == ["3", ""]
    assert cells["tokens"] == ["12.3"] * 2 and cells["truncated"] == ["25.0 %"] * 2
    assert "large - s[m]all, greedy: +25.0 points [+10.0, +40.0] *\n" in text
    assert "large - s[m]all, pass@1: +0.0 points [-10.0, +10.0]\n" in text
    assert "routing, oracle: 50.0 % [40.0, 62.0] at 1.5 GFLOP; large alone 75.0 % at 4 GFLOP" in text
    assert "routing by confidence: 70.0 % at 2 GFLOP, answered by s[m]all 60 %, large 40 %" in text


def test_what_is_not_known_is_no_row():
    given = {"reference": {"greedy": NONE, "pass@1": HALF, **PLAIN, "cost": None}}
    result = {"problems": 3, "samples": 1, "temperature": None, "exits": given, "differences": []}
    text = shown(sums=result)
    assert "greedy" not in text and "FLOP" not in text and "3 problems · 1 sample\n" in text
    assert told_benchmark("sums", result) == "sums: 3 problems · reference pass@1 50.0 % [40.0, 62.0]"
    assert shown() == ""
    plain = dict.fromkeys(PLAIN) | {"failures": 0}
    greedy = {"problems": 3, "samples": 0, "temperature": None, "differences": []}
    text = shown(sums=greedy | {"exits": {"me": {"greedy": HALF, "pass@1": NONE, **plain}}})
    assert "3 problems · greedy answers alone\n" in text and "tokens" not in text and "truncated" not in text


def test_an_interval_says_itself_what_it_is_and_stays_a_share():
    given = {"me": {"greedy": {"value": 1.0, "low": 0.5, "high": 1.0}, **PLAIN}}
    text = shown(sums={"problems": 3, "samples": 0, "temperature": None, "exits": given, "differences": []})
    assert "100.0 % [50.0, 100.0]" in text and "±" not in text


@pytest.mark.parametrize(("cost", "unit"), [(3.0, "TFLOP"), (0.5, "GFLOP"), (2e-6, "MFLOP"), (0.0, "MFLOP")])
def test_costs_are_told_in_a_unit_that_can_be_read(cost, unit):
    assert flop_unit([cost / 7, cost])[1] == unit


def test_routing_is_drawn_with_and_without_a_rule(tmp_path):
    draw_routing(RESULT["routing"], tmp_path / "rule.png", "sums")
    draw_routing(RESULT["routing"] | {"confidence": None}, tmp_path / "oracle.png", "sums")
    assert (tmp_path / "rule.png").stat().st_size > (tmp_path / "oracle.png").stat().st_size > 5000
