import math_verify
import math_verify.grader
import pytest

from ruyi_rl.rewards.mathematics import parser_check, symbolic
from ruyi_rl.rewards.mathematics.parser_check import ParserChanged, check_parser


@pytest.fixture(autouse=True)
def _fresh_parses():
    yield
    symbolic.forget_parses()


def test_the_installed_parser_is_the_known_one():
    check_parser()


PARSE = math_verify.parse


def _rewritten(old, new):
    return lambda text, *rest, **named: PARSE(text.replace(old, new), *rest, **named)


@pytest.mark.parametrize(
    "parse",
    [
        lambda *_, **__: [],
        _rewritten(r"\frac", r"\binom"),
        _rewritten("^", "_"),
        _rewritten("_1", "_2"),
        _rewritten(r"\eta", r"\gamma"),
        _rewritten(r"\sqrt[3]", r"\sqrt"),
        _rewritten(r"\frac{1}{2}x+1", r"\frac{1}{2x+1}"),
        _rewritten(r"\{", "("),
    ],
)
def test_an_altered_parser_is_noticed(monkeypatch, parse):
    monkeypatch.setattr(math_verify, "parse", parse)
    with pytest.raises(
        ParserChanged, match=r"antlr4-python3-runtime [\d.]+, latex2sympy2_extended [\d.]+, math-verify"
    ):
        check_parser()


@pytest.mark.parametrize("verdict", [True, False])
def test_an_altered_grader_is_noticed(monkeypatch, verdict):
    monkeypatch.setattr(math_verify.grader, "verify", lambda *_, **__: verdict)
    with pytest.raises(ParserChanged):
        check_parser()


def test_earlier_parses_hide_nothing(monkeypatch):
    check_parser()
    monkeypatch.setattr(math_verify, "parse", lambda *_, **__: [])
    with pytest.raises(ParserChanged):
        check_parser()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(parser_check, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(math_verify, "parse", lambda *_, **__: [])
    with pytest.raises(ParserChanged, match="no-such-package missing"):
        check_parser()


def test_a_slow_machine_is_no_other_parser(monkeypatch):
    """A worker that starts in the middle of a night's run may get its first second of processor late."""
    limits = []

    def parse(text, *rest, parsing_timeout, **named):
        limits.append(parsing_timeout)
        return PARSE(text, *rest, parsing_timeout=parsing_timeout, **named)

    monkeypatch.setattr(math_verify, "parse", parse)
    monkeypatch.setattr(math_verify.grader, "verify", lambda *_, timeout_seconds, **__: limits.append(timeout_seconds))
    with pytest.raises(ParserChanged):
        check_parser()
    assert set(limits) == {None} and len(limits) > 2
