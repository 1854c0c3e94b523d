import io
import math

import pytest
from PIL import Image
from rich.console import Console

from ruyi_rl.report.history import before_expansion, print_history, rate, source
from ruyi_rl.report.history_plot import count, draw_history, tick


def row(stage, exit="small", layers=1, pass_rate=None, by=None, **changes):
    return {
        "stage": stage,
        "exit": exit,
        "layers": layers,
        "parameters": 1_000_000 * layers,
        "bytes": 4_000_000 * layers,
        "unchanged": False,
        "pass_rate": pass_rate,
        "standard_error": None if pass_rate is None else 0.0125,
        "greedy": pass_rate,
        "measured_by": by,
        "comparable": by is not None,
        **changes,
    }


def dae(**changes):
    rows = [
        row("init"),
        row("sft", pass_rate=0.3, by="sft"),
        row("expand", layers=4, pass_rate=0.3, by="sft", unchanged=True),
        row("grpo", layers=4, pass_rate=0.5, by="grpo"),
        row("compress", layers=4, pass_rate=0.45, by="compress"),
        row("compress, recovered", layers=4, pass_rate=0.48, by="compress"),
        row("init", "large", 6),
        row("sft", "large", 6, 0.7, "sft"),
        *(row(stage, "large", 6, 0.7, "sft", unchanged=True) for stage in ("expand", "grpo", "compress")),
    ]
    return {"expanded": ["small"], "measurement": "x", "stopped": None, "rows": rows, **changes}


def shown(history):
    console = Console(file=io.StringIO(), width=140, highlight=False)
    print_history(console, history)
    return " ".join(console.file.getvalue().split())


def test_the_expanded_exit_stands_first_stage_by_stage():
    text = shown(dae())
    assert text.index("small, stage by stage") < text.index("the other exits")
    assert "│ init │ 1 │ 1,000,000 │ 4 MB │ │ │ not measured │" in text
    assert "│ sft, before expansion │ 1 │ 1,000,000 │ 4 MB │ 30.0 ± 1.2 % │ 30.0 % │ sft │" in text
    assert "│ expand │ 4 │ 4,000,000 │ 16 MB │ 30.0 ± 1.2 % │ 30.0 % │ sft: the same function │" in text
    assert "│ compress, recovered │ 4 │ 4,000,000 │ 16 MB │ 48.0 ± 1.2 % │ 48.0 % │ compress │" in text


def test_an_unchanged_exit_has_one_line_for_all_its_stages():
    text = shown(dae())
    assert "│ large │ sft … compress, unchanged │ 6 │ 6,000,000 │ 24 MB │ 70.0 ± 1.2 % │ 70.0 % │ sft │" in text
    assert text.count("│ large │") == 2  # init, whose weights were others, and the rest


def test_what_is_not_comparable_is_marked_and_explained():
    assert "*" not in shown(dae())
    rows = [row("sft", pass_rate=0.3, by="sft", comparable=False), row("grpo", pass_rate=0.5, by="grpo")]
    text = shown(dae(rows=rows))
    assert "30.0 ± 1.2 % *" in text and "50.0 ± 1.2 % │" in text and "* measured in another way" in text


def test_without_an_expansion_all_exits_stand_together():
    rows = [row("sft", exit, pass_rate=0.3, by="sft") for exit in ("small", "[b]large")]
    text = shown(dae(expanded=[], rows=rows))
    assert "the exits" in text and "stage by stage" not in text and "│ [b]large │ sft │" in text


def test_why_older_stages_are_missing_is_said():
    assert "older stages are left out: runs/[a]/init is gone" in shown(dae(stopped="runs/[a]/init is gone"))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.41249, None, "41.2 %"),
        (0.4, 0.013, "40.0 ± 1.3 %"),
        (0.4, math.nan, "40.0 %"),
        (None, None, ""),
        (math.nan, 0.1, ""),
    ],
)
def test_rates(value, error, text):
    assert rate(value, error) == text


def test_the_expansion_is_found_by_the_layers():
    assert before_expansion(dae()["rows"][:6]) == 1
    assert before_expansion(dae()["rows"][6:]) is None
    assert source(row("compress, recovered", pass_rate=0.1, by="compress")) == "compress"


def colours(history, path):
    """Colour -> pixels of it."""
    assert draw_history(history, path, "x")
    with Image.open(path) as picture:
        assert picture.size == (800, 640)
        return {colour: pixels for pixels, colour in picture.convert("RGB").getcolors(800 * 640)}


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_the_picture_shows_each_rate_that_is_known(tmp_path, unknown):
    small, large, history = (213, 94, 0), (0, 114, 178), dae()
    whole = colours(history, tmp_path / "whole.png")
    history["rows"][3] |= {"pass_rate": unknown, "standard_error": unknown}
    part = colours(history, tmp_path / "part.png")
    assert part[small] < whole[small] - 30 and part[large] >= whole[large] - 5


def test_exits_that_were_recovered_by_different_stages_have_their_own_columns(tmp_path):
    history = dae()
    history["rows"][4]["stage"], history["rows"][5]["stage"] = "a/compress", "a/compress, recovered"
    one = row("compress", "large", 6, 0.7, "compress", standard_error=math.nan)
    history["rows"] += [row("a/compress", "large", 6), one, {**one, "stage": "compress, recovered"}]
    assert draw_history(history, tmp_path / "x.png", "x")


def test_nothing_to_show_gives_no_picture(tmp_path):
    assert not draw_history(dae(rows=[]), tmp_path / "none.png", "x")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("parameters", "text"), [(1_720_574_976, "1.72 B"), (35_400_000, "35.4 M"), (812_000, "812 k"), (7, "7")]
)
def test_counts(parameters, text):
    assert count(parameters) == text


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("grpo", "grpo"),
        ("expanded_sft", "expanded_\nsft"),
        ("compress, recovered", "compress,\nrecovered"),
        ("first/sft", "first/sft"),
        ("a_long_name_of_a_run/sft", "a_long_\nname_of_a_\nrun/sft"),
    ],
)
def test_a_stage_s_name_is_broken_where_it_has_a_sign(stage, text):
    assert tick(stage) == text
