"""What a compression has cost, as tables: a row a matrix, a row a method. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table


def matrix_table(rows: Sequence[Mapping[str, Any]], exit: str, method: str) -> Table:
    """A row a matrix.

    Args:
        rows: the `matrices` of the stage's summary.
        exit: the compressed exit's name.
        method: `svd`, `whitened` or `budgeted`.
    """
    table = Table(title=f"{escape(exit)}, {method}", title_justify="left")
    table.add_column("matrix", style="bold")
    for heading in ("shape", "rank", "ratio", "removed", "predicted", "achieved", "of ‖WX‖", "held out"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            escape(short_name(row["name"])),
            f"{row['rows']} × {row['columns']}",
            str(row["rank"]),
            f"{row['ratio']:.3f}",
            share(row["removed"]),
            magnitude(row["predicted"]),
            magnitude(row["achieved"]),
            share(row["relative"]),
            share(row["held_out_relative"]),
        )
    removed = sum(row["removed"] * row["rows"] * row["columns"] for row in rows)
    whole = sum(row["rows"] * row["columns"] for row in rows)
    table.caption = (
        f"{share(removed / whole)} of {whole:,} parameters removed; the losses are ‖WX - W'X‖ over all tokens of the "
        "calibration, and over ‖WX‖ on its rows and on the held-out ones"
    )
    table.caption_justify = "left"
    return table


def method_table(losses: Mapping[str, Mapping[str, float]], method: str) -> Table:
    """A row a method: the loss of all matrices together, so that each method's worth is seen.

    Args:
        losses: the `losses` of the stage's summary.
        method: the one that was used.
    """
    table = Table(title="loss of all matrices by method", title_justify="left")
    table.add_column("method", style="bold")
    for heading in ("calibration", "of ‖WX‖", "held out", "of ‖WX‖"):
        table.add_column(heading, justify="right")
    for name, found in losses.items():
        table.add_row(
            f"{name} (used)" if name == method else name,
            magnitude(found["calibration"]),
            share(found["calibration_relative"]),
            magnitude(found["held_out"]),
            share(found["held_out_relative"]),
        )
    return table


def short_name(name: str) -> str:
    """`expansions.0.2.up_proj` of `model.expansions.0.2.mlp.up_proj`, so that a terminal's width is enough."""
    return name.removeprefix("model.").replace(".self_attn.", ".").replace(".mlp.", ".")


def magnitude(value: float) -> str:
    """Four digits, whatever the scale."""
    return f"{value:.4g}"


def share(value: float) -> str:
    """`12.3 %`; two digits of what is small: `0.048 %`, `3.1e-05 %`."""
    return f"{100 * value:.1f} %" if value == 0 or abs(value) >= 0.01 else f"{100 * value:#.2g} %"
