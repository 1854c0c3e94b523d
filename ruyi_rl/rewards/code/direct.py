"""Assertions that need no process of their own: one call of the program with literal arguments, and a comparison of its
answer with literals. Most of HumanEval and MBPP is like this, and is judged several times as fast.

What happens to an answer here is bounded: it is plain data of limited size, and only compared, sorted, added up or
measured, in a time that is taken off the program's clock. Whatever hashes it (`set(f(x))`) is left to the trusted
process, which can be ended: numbers can be chosen that all hash alike.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

FUNCTIONS = {f.__name__: f for f in (abs, bool, len, list, max, min, round, sorted, str, sum, tuple)}
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_ANSWER = "__answer__"


@dataclass(frozen=True)
class DirectAssertion:
    """`assert` of an expression over one answer of the program."""

    text: str
    """Its source, for messages."""
    function: str | None
    """The program's function; None for an assertion that calls none (`assert True`)."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    test: CodeType
    """The expression, over the name of the answer."""

    def holds(self, answer: Any) -> bool:
        """Whether it holds for the answer. Raises what its evaluation raises, such as TypeError."""
        # The row's own expression, of nodes that `read_assertion` knows.
        return bool(eval(self.test, {"__builtins__": {}, **FUNCTIONS, _ANSWER: answer}))


def read_assertions(body: list[ast.stmt], names: Mapping[str, str]) -> tuple[DirectAssertion, ...] | None:
    """Read statements that are all direct assertions, but for imports, docstrings and `pass`.

    Args:
        body: of a test.
        names: name in the test -> the program's function that it stands for.

    Returns:
        The assertions in order; None where a statement is anything else.
    """
    found = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or _is_text(node):
            continue
        assertion = _read(node.test, names) if isinstance(node, ast.Assert) else None
        if assertion is None:
            return None
        found.append(assertion)
    return tuple(found)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _read(test: ast.expr, names: Mapping[str, str]) -> DirectAssertion | None:
    reader = _Reader(names)
    text = ast.unparse(test)
    body = reader.visit(test)
    if reader.unknown or len(reader.calls) > 1 or set(names) & set(FUNCTIONS):
        return None
    function, args, kwargs = reader.calls[0] if reader.calls else (None, (), {})
    code = compile(ast.fix_missing_locations(ast.Expression(body)), "<tests>", "eval", dont_inherit=True)
    return DirectAssertion(text if len(text) <= 120 else text[:119] + "…", function, args, kwargs, code)


class _Reader(ast.NodeTransformer):
    """Puts the name of the answer for the call, and notes whether there is anything that it does not know."""

    def __init__(self, names: Mapping[str, str]):
        self.names, self.calls, self.unknown = names, [], False

    def visit(self, node: ast.AST) -> ast.AST:
        if self.unknown or is_literal(node):
            return node
        if isinstance(node, ast.Call):
            return self._call(node)
        known = (
            (isinstance(node, ast.Compare) and all(isinstance(op, _COMPARISONS) for op in node.ops))
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub))
            or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub))
            or isinstance(node, ast.operator | ast.unaryop | ast.cmpop)
        )
        self.unknown |= not known
        return self.generic_visit(node) if known else node

    def _call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name in self.names and all(map(is_literal, [*node.args, *(keyword.value for keyword in node.keywords)])):
            kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            if None not in kwargs:
                self.calls.append((self.names[name], tuple(map(ast.literal_eval, node.args)), kwargs))
                return ast.Name(_ANSWER, ast.Load())
        if name in FUNCTIONS and not node.keywords and _is_cheap(name, node.args):
            node.args = [self.visit(argument) for argument in node.args]
            return node
        self.unknown = True
        return node


def _is_cheap(name: str, args: list[ast.expr]) -> bool:
    """Whether no answer can make this call take long: not `round(5, -(10**4000))`, nor a sum of lists."""
    return len(args) < 2 or (name == "round" and is_literal(args[1])) or name in ("max", "min")


def is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
