"""How completions are shown while they come."""

import io

import pytest
from rich.console import Console

from ruyi_rl.report.streams import BareText, Blocks, Columns, show_streams


def consoles(terminal=False, **size):
    out, notes = io.StringIO(), io.StringIO()
    return Console(file=out, force_terminal=terminal, **size), Console(file=notes), out, notes


@pytest.mark.parametrize(
    ("exits", "terminal", "kind"),
    [(["a"], True, BareText), (["a"], False, BareText), (["a", "b"], False, Blocks), (["a", "b"], True, Columns)],
)
def test_what_shows_them(exits, terminal, kind):
    out, notes, _, _ = consoles(terminal)
    assert type(show_streams(exits, out, notes)) is kind


def test_one_text_comes_as_it_is_piece_by_piece():
    out, notes, text, said = consoles()
    with BareText(out, notes) as shown:
        for piece in ("[bold]x", "\x1b[2J", ":smile: " * 30):
            before = text.getvalue()
            shown.add("a", piece)
            assert text.getvalue() == before + piece
        shown.end("a", "3 tokens")
    assert text.getvalue().endswith(":smile: \n")
    assert said.getvalue() == "a: 3 tokens\n"


def test_a_terminal_is_not_steered_by_a_text():
    for make in (lambda out, notes: BareText(out, notes), lambda out, notes: Columns(["a", "b"], out)):
        out, notes, text, _ = consoles(terminal=True, width=80, height=30)
        with make(out, notes) as shown:
            shown.add("a", "x\x1b[2J\x07\x7fy\tz")
        assert "x␛[2J␇␡y" in text.getvalue() and "\x1b[2J" not in text.getvalue() and "\x07" not in text.getvalue()


def test_blocks_keep_the_exits_order_and_show_what_an_interrupt_left():
    out, notes, text, said = consoles()
    with pytest.raises(KeyboardInterrupt), Blocks(["a", "b", "c"], out, notes) as shown:
        shown.add("b", "second")
        shown.end("b", "2 tokens")
        assert text.getvalue() == ""
        shown.add("a", "first")
        shown.end("a", "1 token")
        assert text.getvalue() == "[a]\nfirst\n\n[b]\nsecond\n\n"
        shown.add("c", "thi")
        raise KeyboardInterrupt
    assert text.getvalue().endswith("\n\n[c]\nthi\n\n")
    assert said.getvalue() == "a: 1 token\nb: 2 tokens\n"


def test_columns_show_the_tail_while_they_grow_and_everything_at_the_end():
    out, _, text, _ = consoles(terminal=True, width=60, height=17)
    columns = Columns(["small", "large"], out)
    columns.add("small", "".join(f"line {number}\n" for number in range(40)) + "last")
    columns.add("large", "word " * 200)

    def rendered(lines):
        screen = Console(file=io.StringIO(), width=60, height=17)
        screen.print(columns.table(lines))
        return screen.file.getvalue()

    tail = rendered(columns.lines)
    assert "last" in tail and "line 39" in tail and "line 2 " not in tail
    assert len(tail.splitlines()) < 17
    with columns:
        columns.end("small", "7 tokens/s")
        columns.end("large", "[9] tokens/s")
    whole = text.getvalue()[text.getvalue().rindex("small") :]
    assert all(f"line {number} " in whole for number in range(40))
    assert whole.count("word") == 200 and "7 tokens/s" in whole and "[9] tokens/s" in whole
    assert len(rendered(columns.lines).splitlines()) < 17
