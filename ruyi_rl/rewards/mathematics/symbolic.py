"""The last resort of the comparison: two expressions as mathematics, by math-verify and sympy, behind caps.

sympy and math-verify are imported on the first call. A parse and a comparison are bounded by `SECONDS` each on the main
thread, where math-verify's own alarm works; on any other thread only the caps hold, so bound those calls from outside.
"""

import functools
import logging
import math
import re
import threading
from fractions import Fraction

from ruyi_rl.rewards.mathematics.cost import too_costly

SECONDS = 2
"""Limit of one parse and of one comparison: math-verify's alarm knows whole seconds only."""
MAX_POWER = 30
"""Power of a sum, where sympy would have to multiply it out."""

_GREEK = ("eta", "zeta", "chi", "psi", "kappa", "nu", "xi")
_BARE_ARGUMENT = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc|ln|log|lg|exp|arcsin|arccos|arctan)((?:\s*\^\s*\{?\s*-?\d\s*\}?)?)"
    r"\s*([a-zA-Z]|\\[a-z]+)\s*(?=\\cdot|\\times|\*)"
)
_POINTS = ((0.7316, 1.2071), (1.3429, 0.5813), (-0.8117, -1.4031), (2.1973, -0.3719))


class TooCostly(Exception):
    """A comparison that was given up. `reason`: `too_costly` (beyond the caps) or `too_slow` (the time was up)."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def same_expression(gold: str, answer: str, seconds: int | None = SECONDS) -> bool:
    """Whether two expressions mean the same.

    Args:
        gold, answer: LaTeX without `$` or box, as `notation.tidy` leaves it.
        seconds: limit of each parse and of the comparison; None: none.

    Returns:
        True where they are equal as numbers (1e-12 relative; 1e-70 without decimals), at sample points of their shared
        variables, or by math-verify. False where not, or where one does not parse.

    Raises:
        TooCostly: where one is beyond the caps, or the time is up.
    """
    if too_costly(gold) or too_costly(answer):
        raise TooCostly("too_costly")
    gold, answer = _avoid_gamma(gold, answer)
    golds = _parse(gold, seconds)
    answers = _parse(answer, seconds) if golds else ()
    return bool(answers) and bool(_bounded(functools.partial(_compare, seconds=seconds), golds, answers, seconds))


def numeric_value(expression: str) -> Fraction | None:
    """The value of an expression without variables, to 30 digits; None for any other.

    Raises:
        TooCostly: as `same_expression`.
    """
    if too_costly(expression):
        raise TooCostly("too_costly")
    parsed = _parse(expression, SECONDS)
    return _bounded(_value, parsed, (), SECONDS) if parsed else None


def _value(parsed: tuple, _: tuple) -> Fraction | None:
    from sympy import Expr

    if not isinstance(parsed[0], Expr) or not parsed[0].is_number or _has_operator(parsed[0]):
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


def _parse(expression: str, seconds: int | None) -> tuple:
    try:
        return _parsed(expression, seconds)
    except _Unparsed:
        return ()


class _Unparsed(Exception):
    """Raised so that the cache keeps no failure, which may be a time-out on a busy machine."""


@functools.lru_cache(maxsize=4096)
def _parsed(expression: str, seconds: int | None) -> tuple:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    limit = seconds if _on_main_thread() else None
    for module in ("parser", "grader"):
        # It warns of every time-out, and of every call without one.
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


def forget_parses() -> None:
    """Empty the cache of parsed expressions."""
    _parsed.cache_clear()


def _bounded(compute, golds: tuple, answers: tuple, seconds: int | None):
    """`compute` within `seconds`. False where sympy gives up."""
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    try:
        return timeout(seconds if _on_main_thread() else None)(compute)(golds, answers)
    except TimeoutException:
        raise TooCostly("too_slow") from None
    except (RuntimeError, ArithmeticError, ValueError, TypeError, AttributeError):
        # sympy has no common error for "I cannot do this"; what it cannot compare is not shown to be equal.
        return None


def _compare(golds: tuple, answers: tuple, seconds: int | None) -> bool:
    from math_verify.grader import verify
    from sympy import srepr

    gold, answer = golds[0], answers[0]
    if _has_operator(gold) or _has_operator(answer):
        # Evaluating these has no bound; with their dummy variables named alike they are compared as they stand.
        return srepr(gold.as_dummy()) == srepr(answer.as_dummy())
    decided = _same_item(gold, answer)
    if decided is not None:
        return decided
    if _is_large_expansion(gold) or _is_large_expansion(answer):
        raise TooCostly("too_costly")
    # This call has its own alarm, which replaces the outer one: both end within `seconds` of here.
    return verify(list(golds), list(answers), timeout_seconds=seconds if _on_main_thread() else None)


def _same_item(gold, answer) -> bool | None:
    """The verdict of numbers: exact values, sample points, entry by entry; None where they cannot tell."""
    from sympy import Expr, FiniteSet, I, MatrixBase, MatrixExpr, nan, oo, zoo
    from sympy.core.relational import Relational

    gold, answer = (item.args[0] if isinstance(item, FiniteSet) and len(item) == 1 else item for item in (gold, answer))
    gold, answer = (item.doit() if isinstance(item, MatrixExpr) else item for item in (gold, answer))
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        if gold.shape != answer.shape:
            return False
        verdicts = [_same_item(left, right) for left, right in zip(gold, answer, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return _same_relation(gold, answer)
    if isinstance(gold, Expr) != isinstance(answer, Expr):
        return False
    if not isinstance(gold, Expr):
        return None
    if {gold, answer} & {nan, oo, -oo, zoo}:
        return gold == answer
    # The grammar reads i as a letter.
    gold, answer = (
        item.xreplace({name: I for name in item.free_symbols if name.name == "i"}) for item in (gold, answer)
    )
    if gold.is_number and answer.is_number:
        return _same_number(gold, answer)
    if gold.is_number != answer.is_number:
        return False
    return _same_function(gold, answer)


def _same_relation(gold, answer) -> bool | None:
    """Equations and inequalities are the same where one's difference of sides is the other's times a constant."""
    from sympy import Eq, GreaterThan, LessThan, Ne, StrictGreaterThan, StrictLessThan

    flipped = {StrictGreaterThan: StrictLessThan, GreaterThan: LessThan}
    if not all(type(item) in (Eq, Ne, StrictLessThan, LessThan, *flipped) for item in (gold, answer)):
        return None
    kinds = [flipped.get(type(item), type(item)) for item in (gold, answer)]
    if kinds[0] is not kinds[1]:
        return False
    sides = [item.rhs - item.lhs if type(item) in flipped else item.lhs - item.rhs for item in (gold, answer)]
    return _same_function(*sides, scaled="any" if kinds[0] in (Eq, Ne) else "positive")


def _has_operator(expression) -> bool:
    from sympy import Derivative, Integral, Limit, Product, Sum

    return hasattr(expression, "has") and expression.has(Sum, Product, Integral, Limit, Derivative)


def _is_large_expansion(expression) -> bool:
    """A sum to a high power: `simplify` would multiply it out."""
    from sympy import Pow

    powers = [power for power in expression.atoms(Pow) if power.base.is_Add] if hasattr(expression, "atoms") else []
    return any(power.exp.is_number and abs(power.exp) > MAX_POWER for power in powers)


def _same_number(gold, answer) -> bool:
    from sympy import Float, log

    # A first look in a few digits tells nearly all different numbers apart.
    first = gold.evalf(15)
    if not _near(first, answer.evalf(15), 6):
        return False
    # sympy's own numbers have no smallest exponent: as floats, 1/2004! and 1/2006! would both be 0. And 2^{4181} + 1 is
    # told from 2^{4181} by all its digits only.
    whole = max(0, int(log(abs(first) + 1, 10)))
    digits = 12 if gold.has(Float) or answer.has(Float) else 70 + whole
    return _near(gold.evalf(digits + 20), answer.evalf(digits + 20), digits)


def _near(left, right, digits: int) -> bool:
    difference, scale = abs(left - right).evalf(), max(abs(left).evalf(), abs(right).evalf())
    return bool(scale.is_finite and difference * 10**digits <= scale)


def _same_function(gold, answer, scaled: str | None = None) -> bool | None:
    """Equal or different at sample points of the shared variables; None where the points cannot tell.

    Args:
        scaled: also equal where one is the other times a constant: `any`, as the two sides of equations are, or
            `positive`, as those of inequalities are.
    """
    names = sorted(gold.free_symbols, key=str)
    if names != sorted(answer.free_symbols, key=str):
        return False
    factor = 1
    for point, (first, step) in enumerate(_POINTS):
        # No pattern in the values: in an arithmetic progression x + y + z is 3 (x - y + z).
        values = {name: first + step * math.sin(12.9898 * index + 78.233 * point) for index, name in enumerate(names)}
        left, right = gold.evalf(20, subs=values), answer.evalf(20, subs=values)
        if scaled and point == 0:
            if not (left.is_Float and right.is_Float and right):
                return None
            factor = left / right
            if scaled == "positive" and factor < 0:
                return False
        right = right * factor
        difference, scale = abs(left - right).evalf(), max(abs(left).evalf(), abs(right).evalf())
        if not (difference.is_Float or difference.is_zero) or not scale.is_finite:
            return None
        if difference * 10**9 > scale:
            return False if point == 0 or scaled else None
    return True
