"""Reported scores: the table is what it says of itself, and measured ones stand beside the right model."""

import io
import json
import statistics

import pytest
from rich.console import Console

from ruyi_rl.report.harness_table import harness_table
from ruyi_rl.report.published import beside_published, published_scores, published_table

RUYI2 = {"exit2": 2, "exit21": 21, "exit39": 39}


def shown(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def test_the_averages_are_those_of_the_rows():
    published = published_scores()
    for model, scores in published.models.items():
        single = {name: score for name, score in scores.items() if name != "average"}
        assert single.keys() == published.measured_by.keys(), model
        assert statistics.fmean(single.values()) == pytest.approx(scores["average"], abs=0.006), model


def test_a_family_is_known_by_its_shape():
    published = published_scores()
    assert published.models_of(5120, RUYI2) == {"exit2": "Ruyi2-1.7B", "exit21": "Ruyi2-8B", "exit39": "Ruyi2-14B"}
    assert published.models_of(5120, {"1.7B": 2, "8B": 21, "14B": 39})["8B"] == "Ruyi2-8B"
    assert published.models_of(4096, {"small": 11, "large": 35}) == {"large": "Qwen3-8B"}
    assert published.models_of(5120, {"small": 11, "large": 39}) == {"large": "Qwen3-14B"}
    assert published.models_of(128, {"small": 1, "large": 4}) == {}


def test_measured_stands_beside_reported():
    published = published_scores()
    models = published.models_of(5120, RUYI2)
    summary = {
        "harness": {
            "mmlu": {"metric": "acc", "exits": {"exit2": {"value": 0.60}, "exit39": {"value": 0.80}}},
            "winogrande": {"metric": "acc", "exits": {"exit2": {"value": 0.5}}},
        },
        "benchmarks": {
            "math500": {"exits": {"exit2": {"greedy": {"value": 0.40}}}},
            "math": {"exits": {"exit2": {"greedy": {"value": 0.99}}}},
            "gsm8k": {"exits": {"exit2": {"greedy": {"value": None}}}},
        },
    }
    found = beside_published(summary, models, published)
    assert found.keys() == {"exit2", "exit39"}
    assert found["exit2"]["benchmarks"] == {
        "MMLU": {"measured": 0.60, "reported": pytest.approx(0.6277), "by": "mmlu"},
        "MATH": {"measured": 0.40, "reported": pytest.approx(0.3914), "by": "math500"},
    }
    assert found["exit2"]["average"] == {"measured": 0.5, "reported": pytest.approx((0.6277 + 0.3914) / 2)}
    lines = shown(published_table(found, published.source)).splitlines()
    (mmlu,) = [line for line in lines if "MMLU" in line]
    assert "60.00 (-2.77)" in mmlu and "62.77" in mmlu and "80.00 (-1.84)" in mmlu and "81.84" in mmlu
    assert "arXiv 2602.22543" in " ".join(" ".join(lines).split())
    assert json.loads(json.dumps(found)) == found


def test_nothing_measured_nothing_shown():
    published = published_scores()
    assert beside_published({}, published.models_of(5120, RUYI2), published) == {}


def test_the_harness_s_table_has_a_row_a_task():
    score = {"value": 0.5, "standard_error": 0.03, "problems": 1200}
    tasks = {
        "one": {"metric": "acc", "exits": {"small": score, "large": score | {"standard_error": None}}},
        "two": {"metric": "word_perplexity", "exits": {"large": score | {"value": 12.345, "standard_error": 0.1}}},
    }
    one, two = [line for line in shown(harness_table(tasks)).splitlines() if "one" in line or "two" in line]
    assert "50.0 ± 3.0 %" in one and "50.0 %" in one and "1,200" in one
    assert "12.35 ± 0.1" in two or "12.34 ± 0.1" in two
