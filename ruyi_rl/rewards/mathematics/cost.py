"""What an expression may cost sympy, estimated from its text: a bomb is refused before anything evaluates it.

sympy evaluates powers, factorials and binomials of numbers as soon as they are built, in calls that no signal can
interrupt. So the number of decimal digits that an exact evaluation would write is bounded from above first.
"""

import math
import re
from dataclasses import dataclass

MAX_LENGTH = 400
"""Characters of an expression."""
MAX_DIGITS = 40
"""Digits in a row."""
MAX_SIZE = 8000
"""Decimal digits of all numbers that an exact evaluation would write."""
MAX_DEPTH = 9
"""Nested brackets."""
MAX_TOWER = 3
"""Exponents inside exponents, and functions inside functions: each level costs the parser about .1 s."""
MAX_MATRIX_POWER = 12
"""Power of a matrix; sympy multiplies it out, and takes roots through eigenvalues."""
MAX_ANGLE = 30
"""Decimal digits of a trigonometric function's argument before the point: it is reduced with as many more."""
MAX_OPERATORS = 2
"""Sums, products, integrals and limits."""
MAX_TOKENS = 160
"""Numbers, letters and signs; the parser's time grows with them."""

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\.\d+|\*\*|\S", re.DOTALL)
_FUNCTION = re.compile(r"\\(?:arc|ar)?(?:sin|cos|tan|cot|sec|csc|ln|log|lg|exp)h?$|\\(?:lfloor|lceil|operatorname)$")
_LOGARITHM = re.compile(r"\\(?:ln|log|lg|lfloor|lceil|operatorname)$")
_SEPARATORS = frozenset("+-,;=<>&|")
_OPERATOR = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])")
_OPENING = frozenset("{([")
_STOPS = frozenset(["}", ")", "]", "\\end"])


@dataclass(frozen=True)
class Size:
    """Upper bounds: `digits` to write a number exactly (numerator and denominator), `log`: log10 of its value.

    `whole`: written as an integer; `matrix`: there is a matrix in it.
    """

    digits: float
    log: float = 0.0
    whole: bool = False
    matrix: bool = False

    def times(self, other: "Size") -> "Size":
        return Size(self.digits + other.digits, self.log + other.log, matrix=self.matrix or other.matrix)

    def power(self, exponent: "Size") -> "Size":
        times = _value(exponent)
        if self.matrix and (times > MAX_MATRIX_POWER or not exponent.whole):
            return Size(math.inf)
        return Size(
            self.digits * max(1.0, times) + exponent.digits,
            self.log * times,
            self.whole and exponent.whole,
            self.matrix,
        )

    def factorial(self) -> "Size":
        value = _value(self)
        digits = value * max(1.0, self.log) if math.isfinite(value) else math.inf
        return Size(digits, digits, self.whole)

    def choose(self, other: "Size") -> "Size":
        """C(n, k) is below 2^n; where n is no number, it is written out as a product of k factors."""
        digits = 0.302 * _value(self) if self.whole else 30 * _value(other)
        return Size(digits + self.digits + other.digits, digits, self.whole)


def _value(size: Size) -> float:
    return 10**size.log if size.log < 12 else math.inf


def too_costly(expression: str) -> bool:
    """Whether an expression is beyond the caps: too long, too deep, or naming numbers too large to write."""
    if len(expression) > MAX_LENGTH or re.search(rf"\d{{{MAX_DIGITS + 1}}}", expression):
        return True
    depth = 0
    for character in expression:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            return True
    if len(_OPERATOR.findall(expression)) > MAX_OPERATORS:
        return True
    estimate = _Estimate(_TOKEN.findall(expression))
    return len(estimate.tokens) > MAX_TOKENS or estimate.size() > MAX_SIZE or estimate.tower > MAX_TOWER


class _Estimate:
    """A recursive descent over the tokens that never fails: what it does not know counts as a symbol."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.tower = 0

    def size(self) -> float:
        total = 0.0
        while self.position < len(self.tokens):
            total += self._sum(0).digits
            self.position += 1  # What nothing opened.
        return total

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _next(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1] if self.position <= len(self.tokens) else ""

    def _sum(self, level: int) -> Size:
        """Terms up to a closing bracket, which stays; anything between terms counts as a plus."""
        digits, log, whole, matrix = 0.0, 0.0, True, False
        while (token := self._peek()) and token not in _STOPS:
            term = self._product(level)
            digits += term.digits
            log = max(log, term.log) + (0.31 if digits > term.digits else 0)
            whole, matrix = whole and term.whole, matrix or term.matrix
        return Size(digits, log, whole, matrix)

    def _product(self, level: int) -> Size:
        product = None
        while (token := self._peek()) and token not in _STOPS:
            if token in _SEPARATORS:
                self.position += 1
                if product is not None:
                    break
                continue
            factor = self._factor(level)
            product = factor if product is None else product.times(factor)
        return product or Size(0, whole=True)

    def _factor(self, level: int) -> Size:
        size = self._atom(level)
        while (token := self._peek()) in ("^", "**", "_", "!"):
            self.position += 1
            if token == "!":
                size = size.factorial()
            elif token == "_":
                self._atom(level)
            else:
                self.tower = max(self.tower, level + 1)
                # The grammar's powers bind to the right: a^b^c is a^(b^c).
                size = size.power(self._factor(level + 1))
        return size

    def _group(self, level: int) -> Size:
        if self._peek() not in _OPENING:
            return self._atom(level)
        self.position += 1
        inner = self._sum(level)
        self.position += 1
        return inner

    def _atom(self, level: int) -> Size:
        token = self._peek()
        if token in _OPENING:
            return self._group(level)
        self.position += 1
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            log = math.log10(float(token)) if float(token) > 0 else 0.0
            whole = "." not in token
            return Size(0 if token in ("0", "1") else log if whole else len(token), max(log, 0.0), whole)
        if token == "\\begin":
            self._group(level)
            entries = self._sum(level)
            self.position += 1
            self._group(level)
            return Size(entries.digits, entries.log, matrix=True)
        if token == "\\frac":
            above, below = self._group(level), self._group(level)
            return Size(above.digits + below.digits, above.log, matrix=above.matrix or below.matrix)
        if token == "\\binom":
            return self._group(level).choose(self._group(level))
        if token == "\\sqrt":
            index = self._group(level) if self._peek() == "[" else None
            radicand = self._group(level)
            return Size(math.inf if radicand.matrix else radicand.digits + (index.digits if index else 0), radicand.log)
        if _FUNCTION.match(token):
            self.tower = max(self.tower, level + 1)
            if self._peek() in ("^", "_"):
                self.position += 1
                self._atom(level + 1)
            argument = self._factor(level + 1) if self._peek() and self._peek() not in _STOPS else Size(1)
            if token == "\\exp":
                return Size(0.44 * _value(argument) + argument.digits, 0.44 * _value(argument))
            if argument.matrix or (argument.log > MAX_ANGLE and not _LOGARITHM.match(token)):
                return Size(math.inf)
            return Size(argument.digits + 1, max(argument.log, 1.0))
        return Size(0.1)
