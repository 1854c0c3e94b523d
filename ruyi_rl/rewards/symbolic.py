"""The last resort of the comparison: two expressions as mathematics, by math-verify and sympy, behind caps.

sympy and math-verify are imported on the first call. A parse and a comparison are bounded by `SECONDS` each on the main
thread, where math-verify's own alarm works; on any other thread only the caps hold, so bound those calls from outside.
"""

import functools
import logging
import re
import threading
from fractions import Fraction

SECONDS = 2
"""Limit of one parse and of one comparison: math-verify's alarm knows whole seconds only."""
MAX_LENGTH = 400
"""Characters of an expression."""
MAX_DIGITS = 40
"""Digits in a row."""
MAX_POWER = 30
"""Power of a sum, where sympy would have to multiply it out."""
MAX_DEPTH = 12
"""Nested brackets."""

_EXPONENT = re.compile(r"\^\s*(?:\{|\(|\s*)")
_BIG_BINOMIAL = re.compile(r"\\binom|choose|\bC\(")
_GREEK = ("eta", "zeta", "chi", "psi", "kappa", "nu", "xi")
_BARE_ARGUMENT = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc|ln|log|lg|exp|arcsin|arccos|arctan)((?:\s*\^\s*\{?\s*-?\d\s*\}?)?)"
    r"\s*([a-zA-Z]|\\[a-z]+)\s*(?=\\cdot|\\times|\*)"
)
_POINTS = ((0.7316, 1.2071), (1.3429, 0.5813), (-0.8117, -1.4031), (2.1973, -0.3719))


def too_costly(expression: str) -> bool:
    """Whether an expression is beyond the caps: too long, too deep, or able to name a number too large to hold."""
    if len(expression) > MAX_LENGTH or re.search(rf"\d{{{MAX_DIGITS + 1}}}", expression):
        return True
    depth = 0
    for character in expression:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            return True
    largest = max((int(digits) for digits in re.findall(r"\d+", expression)), default=0)
    powers = [_exponent(expression, match.end()) for match in _EXPONENT.finditer(expression)]
    if any(_is_large_power(power) for power in powers):
        return True
    if "!" in expression and (largest > 3000 or "!!" in expression.replace(" ", "") or expression.count("!") > 6
                              or any(len(re.sub(r"\D", "", power)) > 1 for power in powers)):  # fmt: skip
        return True
    if re.search(r"\)\s*!", expression) and "!" in expression[: expression.rfind("!")] and largest > 5:
        return True
    return bool(_BIG_BINOMIAL.search(expression)) and largest > 3000


def _exponent(expression: str, start: int) -> str:
    """The exponent that starts at a position: up to its closing bracket, or one token."""
    if start and expression[start - 1] in "{(":
        depth = 1
        for end in range(start, len(expression)):
            depth += (expression[end] in "{(") - (expression[end] in "})")
            if depth == 0:
                return expression[start:end]
        return expression[start:]
    token = re.match(r"-?\d+|\\?[a-zA-Z]+|.", expression[start:])
    rest = expression[start + token.end() :].lstrip() if token else ""
    return (token[0] if token else "") + ("^" if rest.startswith("^") else "")


def _is_large_power(power: str) -> bool:
    """A tower of numbers, or a number of five digits and more."""
    symbols = re.sub(r"\\(?:frac|sqrt|cdot|times|left|right)", "", power)
    tower = "^" in symbols and not re.search(r"[a-zA-Z]", symbols)
    return tower or "!" in symbols or bool(re.search(r"\d{5}", symbols))


def same_expression(gold: str, answer: str) -> bool:
    """Whether two expressions mean the same.

    Args:
        gold, answer: LaTeX without `$` or box, as `notation.tidy` leaves it.

    Returns:
        True where they are equal as numbers (1e-12 relative; a decimal on one side: as `closeness` says), at sample
        points of their shared variables, or by math-verify. False where not, where one does not parse, where one is
        beyond the caps, or where the time is up.
    """
    if too_costly(gold) or too_costly(answer):
        return False
    gold, answer = _avoid_gamma(gold, answer)
    golds = _parse(gold)
    answers = _parse(answer) if golds else ()
    if not answers:
        return False
    return _bounded(_compare, golds, answers)


def numeric_value(expression: str) -> Fraction | None:
    """The value of an expression without variables, to 30 digits; None for any other, or one beyond the caps."""
    parsed = () if too_costly(expression) else _parse(expression)
    value = _bounded(_value, parsed, ()) if parsed else None
    return value if isinstance(value, Fraction) else None


def _value(parsed: tuple, _: tuple) -> Fraction | None:
    from sympy import Expr

    if not isinstance(parsed[0], Expr) or not parsed[0].is_number:
        return None
    value = parsed[0].evalf(30)
    return Fraction(str(value)) if value.is_Float or value.is_Rational else None


def _avoid_gamma(gold: str, answer: str) -> tuple[str, str]:
    r"""With `\gamma` under a name that neither uses: antlr 4.9.3, which hydra pins, cannot parse it."""
    if r"\gamma" not in gold + answer:
        return gold, answer
    name = next((name for name in _GREEK if f"\\{name}" not in gold + answer), "xi")
    return tuple(re.sub(r"\\gamma(?![a-zA-Z])", rf"\\{name} ", text) for text in (gold, answer))


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _parse(expression: str) -> tuple:
    try:
        return _parsed(expression)
    except _Unparsed:
        return ()


class _Unparsed(Exception):
    """Raised so that the cache keeps no failure, which may be a time-out on a busy machine."""


@functools.lru_cache(maxsize=4096)
def _parsed(expression: str) -> tuple:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    limit = SECONDS if _on_main_thread() else None
    if limit is None:
        for module in ("parser", "grader"):
            logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    # Unbracketed, the argument of a function would take in the factors behind it.
    expression = _BARE_ARGUMENT.sub(r"\\\1\2(\3) ", expression)
    # Units are off: they are split off before, and math-verify takes the variable of "5m" for one.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)]
    items = tuple(parse(rf"\boxed{{{expression}}}", config, "no_fallback", parsing_timeout=limit))
    if not items:
        raise _Unparsed
    return items


def _bounded(compare, golds: tuple, answers: tuple):
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    try:
        return timeout(SECONDS if _on_main_thread() else None)(compare)(golds, answers)
    except (TimeoutException, RuntimeError, ArithmeticError, ValueError, TypeError, AttributeError):
        # sympy has no common error for "I cannot do this"; what it cannot compare is not shown to be equal.
        return False


def _compare(golds: tuple, answers: tuple) -> bool:
    from math_verify.grader import verify
    from sympy import Expr, nan, oo, zoo

    gold, answer = golds[0], answers[0]
    if isinstance(gold, Expr) and isinstance(answer, Expr):
        if {gold, answer} & {nan, oo, -oo, zoo}:
            return gold == answer
        if gold.is_number and answer.is_number:
            return _same_number(gold, answer)
        if gold.is_number != answer.is_number:
            return False
        decided = _same_function(gold, answer)
        if decided is not None:
            return decided
    if any(_is_large_expansion(item) for item in (gold, answer)):
        return False
    # This call has its own alarm, which replaces the outer one: both end within SECONDS of here.
    return verify(list(golds), list(answers), timeout_seconds=SECONDS if _on_main_thread() else None)


def _is_large_expansion(expression) -> bool:
    """A sum to a high power: `simplify` would multiply it out."""
    from sympy import Pow

    powers = [power for power in expression.atoms(Pow) if power.base.is_Add]
    return any(power.exp.is_number and abs(power.exp) > MAX_POWER for power in powers)


def _same_number(gold, answer) -> bool:
    from sympy import Float

    # sympy's own numbers have no smallest exponent: as floats, 1/2004! and 1/2006! would both be 0.
    digits = 12 if gold.has(Float) or answer.has(Float) else 70
    left, right = gold.evalf(digits + 20), answer.evalf(digits + 20)
    difference, scale = abs(left - right).evalf(), max(abs(left).evalf(), abs(right).evalf())
    return bool(scale.is_finite and difference * 10**digits <= scale)


def _same_function(gold, answer) -> bool | None:
    """Equal or different at sample points of the shared variables; None where the points cannot tell."""
    names = sorted(gold.free_symbols, key=str)
    if names != sorted(answer.free_symbols, key=str) or not names:
        return None
    for point, (first, step) in enumerate(_POINTS):
        values = {name: first + 0.3571 * step * index for index, name in enumerate(names)}
        left, right = gold.evalf(20, subs=values), answer.evalf(20, subs=values)
        difference, scale = abs(left - right).evalf(), max(abs(left).evalf(), abs(right).evalf())
        if not (difference.is_Float or difference.is_zero) or not scale.is_finite:
            return None
        if difference * 10**9 > scale:
            return False if point == 0 else None
    return True
