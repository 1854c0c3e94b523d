"""Completions as they come: one is written token by token, several stand side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# A terminal would obey them: an untrained byte model writes any.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters -> their visible pictures."""
FRAME = 8
"""Lines that a table of texts has besides them, and the cursor's."""


class Streams(Protocol):
    """Context that shows one completion of each exit; at its end, an early one too, all that has come is shown."""

    def add(self, exit: str, text: str) -> None:
        """More of an exit's text."""
        ...

    def end(self, exit: str, note: str) -> None:
        """An exit's text is whole; `note` says how it went."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def show_streams(exits: Sequence[str], out: Console, notes: Console) -> Streams:
    """What shows the texts of these exits: columns on a terminal, labelled blocks elsewhere, bare text for one exit.

    Args:
        out: where the texts go.
        notes: where the notes go if they would mix with the texts.
    """
    if len(exits) == 1:
        return BareText(out, notes)
    return Columns(exits, out) if out.is_terminal else Blocks(exits, out, notes)


def note_console() -> Console:
    """A console on standard error, so that standard output holds nothing but what was asked for."""
    return Console(stderr=True, highlight=False)


def write(out: Console, text: str) -> None:
    """Writes a completion's text as it is, at once; on a terminal without the characters that steer it."""
    out.file.write(text.translate(CONTROLS) if out.is_terminal else text)
    out.file.flush()


class BareText:
    """One exit: its text alone, as it comes."""

    def __init__(self, out: Console, notes: Console):
        self.out, self.notes = out, notes
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._open:
            write(self.out, "\n")

    def add(self, exit: str, text: str) -> None:
        write(self.out, text)

    def end(self, exit: str, note: str) -> None:
        write(self.out, "\n")
        self._open = False
        print_note(self.notes, exit, note)


class Blocks:
    """Several exits where nothing can be drawn twice: `[exit]` and its text, one block after the other."""

    def __init__(self, exits: Sequence[str], out: Console, notes: Console):
        self.out, self.notes = out, notes
        self.texts = dict.fromkeys(exits, "")
        """Exit -> its text, of those that are not shown yet."""
        self._ended: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for exit in list(self.texts):
            self._show(exit)

    def add(self, exit: str, text: str) -> None:
        self.texts[exit] += text

    def end(self, exit: str, note: str) -> None:
        self._ended[exit] = note
        for first in list(self.texts):
            if first not in self._ended:
                break
            self._show(first)

    def _show(self, exit: str) -> None:
        write(self.out, f"[{exit}]\n{self.texts.pop(exit)}\n\n")
        if exit in self._ended:
            print_note(self.notes, exit, self._ended[exit])


class Columns:
    """Several exits on a terminal: a column each. While they grow, the last lines that fit are shown."""

    def __init__(self, exits: Sequence[str], out: Console):
        self.out = out
        self.texts = dict.fromkeys(exits, "")
        self.notes = dict.fromkeys(exits, "")
        self._live = Live(console=out, get_renderable=lambda: self.table(self.lines), refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.get_renderable = lambda: self.table(None)
        self._live.stop()

    def add(self, exit: str, text: str) -> None:
        self.texts[exit] += text.translate(CONTROLS)

    def end(self, exit: str, note: str) -> None:
        self.notes[exit] = note

    @property
    def lines(self) -> int:
        """Lines of text that the terminal has room for."""
        return max(1, self.out.height - FRAME)

    def table(self, lines: int | None) -> Table:
        """The texts side by side.

        Args:
            lines: only so many last lines of each; None: all.
        """
        table = Table(expand=True, show_footer=any(self.notes.values()), footer_style="dim")
        width = max(1, (self.out.width - 1) // len(self.texts) - 3)
        cells = []
        for exit, text in self.texts.items():
            table.add_column(escape(exit), footer=escape(self.notes[exit]), ratio=1, overflow="fold")
            wrapped = Text(text, overflow="fold").wrap(self.out, width)
            cells.append(Text("\n").join(wrapped if lines is None else wrapped[-lines:]))
        table.add_row(*cells)
        return table


def print_note(notes: Console, exit: str, note: str) -> None:
    """`small: 12 tokens …`, on one line."""
    notes.print(f"{exit}: {note}", style="dim", markup=False, soft_wrap=True)
