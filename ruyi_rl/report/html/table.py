"""A table as plain values; the template draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    text: str
    under: str = ""
    """A second, smaller line, such as an interval."""
    exit: int | None = None
    """Number of the exit whose colour stands before the text."""


@dataclass(frozen=True)
class ShownTable:
    """Rows under headings; the first column names the rows."""

    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""


def table(
    caption: str, rows: Sequence[Mapping[str, Cell | str]], order: Sequence[str] = (), note: str = ""
) -> ShownTable:
    """A table of rows that need not have all columns; a column that no row fills is left out.

    Args:
        rows: heading -> cell.
        order: headings in their order, before those that only rows name.
    """
    named = dict.fromkeys([*order, *(heading for row in rows for heading in row)])
    heads = [heading for heading in named if any(_cell(row.get(heading, "")).text for row in rows)]
    return ShownTable(caption, heads, [[_filled(row.get(heading, "")) for heading in heads] for row in rows], note)


def _cell(value: Cell | str) -> Cell:
    return Cell(value) if isinstance(value, str) else value


def _filled(value: Cell | str) -> Cell:
    cell = _cell(value)
    return cell if cell.text else Cell("–")
