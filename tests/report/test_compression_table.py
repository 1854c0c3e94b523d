import io

import pytest
from rich.console import Console

from ruyi_rl.report.compression import magnitude, matrix_table, method_table, share

ROW = {
    "name": "model.expansions.0.2.mlp.up_proj",
    "rows": 17408,
    "columns": 5120,
    "rank": 2373,
    "ratio": 0.4004,
    "removed": 0.40002,
    "predicted": 12345.678,
    "achieved": 12346.1,
    "relative": 0.0312,
    "held_out_relative": 0.0455,
}
HEAD = {**ROW, "name": "lm_head.0", "rows": 1000, "columns": 5120, "removed": 0.5}
LOSSES = {
    method: {
        "calibration": loss,
        "calibration_relative": loss / 1000,
        "held_out": 2 * loss,
        "held_out_relative": loss / 400,
    }
    for method, loss in (("svd", 300.0), ("whitened", 200.0), ("budgeted", 100.0))
}


def shown(table, width=160):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table)
    return " ".join(console.file.getvalue().split())


def test_a_row_a_matrix_with_its_losses():
    text = shown(matrix_table([ROW, HEAD], "1.7B", "budgeted"))
    assert "1.7B, budgeted" in text
    cells = ["expansions.0.2.up_proj", "17408 × 5120", "2373", "0.400", "40.0 %"]
    assert " │ ".join([*cells, "1.235e+04", "1.235e+04", "3.1 %", "4.5 %"]) in text


def test_the_caption_counts_all_parameters():
    text = shown(matrix_table([ROW, HEAD], "1.7B", "svd"))
    whole = 17408 * 5120 + 1000 * 5120
    removed = (0.40002 * 17408 * 5120 + 0.5 * 1000 * 5120) / whole
    assert f"{100 * removed:.1f} % of {whole:,} parameters removed" in text and "40.5 %" in text


def test_a_row_a_method_and_the_one_that_was_used():
    text = shown(method_table(LOSSES, "whitened"))
    assert "│ svd │ 300 │ 30.0 % │ 600 │ 75.0 % │" in text
    assert "│ whitened (used) │ 200 │ 20.0 % │" in text and "│ budgeted │ 100 │" in text


def test_a_terminal_of_120_columns_is_wide_enough():
    row = {**ROW, "name": "model.expansions.0.2.mlp.down_proj", "rows": 151936}
    assert "│ expansions.0.2.down_proj │ 151936 × 5120 │" in shown(matrix_table([row], "1.7B", "svd"), 120)


def test_names_with_brackets_are_shown_as_they_are():
    assert "[b]exit, svd" in shown(matrix_table([ROW], "[b]exit", "svd"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 %"),
        (0.4, "40.0 %"),
        (0.0053, "0.53 %"),
        (0.00048, "0.048 %"),
        (3.1e-7, "3.1e-05 %"),
        (1.0, "100.0 %"),
    ],
)
def test_shares_that_round_to_nothing_are_not_hidden(value, text):
    assert share(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1.5e-9, "1.5e-09"), (38.8412, "38.84"), (2.0e10, "2e+10")])
def test_losses_of_any_scale(value, text):
    assert magnitude(value) == text
