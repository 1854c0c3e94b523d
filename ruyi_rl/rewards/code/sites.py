"""Marks in test source: where it asserts, where it takes an exception as expected, and what it must come to.

The marks are calls of names that `ruyi_rl.rewards.code.trusted` puts into the tests' name space.
"""

import ast
from collections.abc import Iterable

RAISES = ("raises", "assertRaises", "assertRaisesRegex")
"""Functions that expect an exception, as context managers or with a function to call."""


class ExpectationMarker(ast.NodeTransformer):
    """Puts `__expected__()` into every handler, and makes every `with …: body` that may swallow an exception

        with …, __leaving__(): body
        __swallowed__()

    so that an exception of the program which none of these has taken, but Python itself (as `map` does with
    StopIteration), is known for what it is.
    """

    def visit_Try(self, node: ast.Try) -> ast.Try:
        node.body = self.visit_all(node.body)
        for handler in node.handlers:
            handler.body = [*self.marks_of_handler(handler), *self.visit_all(handler.body)]
        node.orelse, node.finalbody = self.visit_all(node.orelse), self.visit_all(node.finalbody)
        return node

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With) -> list[ast.stmt]:
        raises = [item.context_expr for item in node.items if called_name(item.context_expr) in RAISES]
        node.body = self.visit_all(node.body)
        node.items = [*node.items, ast.withitem(call("__leaving__"))]
        return [node, ast.Expr(call("__swallowed__")), *self.marks_of_raises(raises)]

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | list[ast.stmt]:
        """`assertRaises(ValueError, f, -1)`: what it catches is not seen, so that its class must do."""
        self.generic_visit(node)
        if called_name(node.value) not in RAISES or not node.value.args:
            return node
        return [node, ast.Expr(call("__caught__", node.value.args[0])), *self.marks_of_raises([node.value])]

    def marks_of_handler(self, handler: ast.ExceptHandler) -> list[ast.stmt]:
        return [ast.Expr(call("__expected__"))]

    def marks_of_raises(self, raises: list[ast.expr]) -> list[ast.stmt]:
        return []

    def visit_all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return self.generic_visit(ast.Module(body, [])).body


class SiteMarker(ExpectationMarker):
    """Also puts every assertion into `with __assertion__(site, loose):`, `__reached__(site)` where an exception came as
    expected, and `__entered__(loop)` into loops that assert.

    Loose: its failure may be swallowed, so that the assertions after it are counted too; not where the test itself
    catches what is raised.

    Args:
        helpers: names of functions that assert.
        check: whether the source defines `check`, all of which runs; other functions may never be called.
    """

    def __init__(self, helpers: Iterable[str], check: bool):
        self.helpers, self.check = frozenset(helpers), check
        self.texts: list[str] = []
        """The source of every site."""
        self.required: list[int] = []
        """Sites that every run comes to, whatever the program answers: in no branch, and behind no exception."""
        self.loops: list[int] = []
        """Loops at such places; one over nothing has tested nothing."""
        self._guarded, self._certain = 0, True

    def visit_Assert(self, node: ast.Assert) -> ast.With:
        mark = self._site("__assertion__", ast.unparse(node.test), ast.Constant(not self._guarded))
        return ast.With([ast.withitem(mark)], [ast.Assert(node.test, None)])

    def visit_Try(self, node: ast.Try) -> ast.Try:
        handled, certain = bool(node.handlers), self._certain
        self._guarded += handled
        self._certain = certain and not handled
        node.body = self.visit_all(node.body)
        self._guarded -= handled
        self._certain = False
        for handler in node.handlers:
            handler.body = [*self.marks_of_handler(handler), *self.visit_all(handler.body)]
        node.orelse = self.visit_all(node.orelse)
        self._certain = certain
        node.finalbody = self.visit_all(node.finalbody)
        return node

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With) -> list[ast.stmt]:
        called = {called_name(item.context_expr) for item in node.items}
        certain, raises = self._certain, not called.isdisjoint(RAISES)
        self._guarded += raises
        self._certain = certain and not raises and "suppress" not in called
        body = self.visit_all(node.body)
        self._guarded -= raises
        self._certain = certain
        marked = super().visit_With(ast.With(node.items, []))
        marked[0].body = body
        return marked

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._visit_in(node, self._certain and self.check and node.name == "check")

    def _visit_branches(self, node: ast.stmt) -> ast.stmt:
        return self._visit_in(node, False)

    visit_If = visit_Match = visit_ClassDef = visit_AsyncFunctionDef = _visit_branches

    def visit_For(self, node: ast.For | ast.While) -> ast.stmt:
        asserts = any(
            isinstance(part, ast.Assert) or called_name(part) in self.helpers
            for statement in node.body
            for part in ast.walk(statement)
        )
        body = self.visit_all(node.body)
        if self._certain and asserts:
            self.loops.append(len(self.loops))
            body.insert(0, ast.Expr(call("__entered__", ast.Constant(self.loops[-1]))))
        certain, self._certain = self._certain, False
        node.body, node.orelse = body, self.visit_all(node.orelse)
        self._certain = certain
        return node

    visit_While = visit_For

    def marks_of_handler(self, handler: ast.ExceptHandler) -> list[ast.stmt]:
        text = "except " + (ast.unparse(handler.type) if handler.type else "")
        return [*super().marks_of_handler(handler), ast.Expr(self._site("__reached__", text))]

    def marks_of_raises(self, raises: list[ast.expr]) -> list[ast.stmt]:
        return [ast.Expr(self._site("__reached__", ast.unparse(expected))) for expected in raises]

    def _visit_in(self, node: ast.stmt, certain: bool) -> ast.stmt:
        outside, self._certain = self._certain, certain
        self.generic_visit(node)
        self._certain = outside
        return node

    def _site(self, name: str, text: str, *arguments: ast.expr) -> ast.Call:
        if self._certain:
            self.required.append(len(self.texts))
        self.texts.append(text if len(text) <= 120 else text[:119] + "…")
        return call(name, ast.Constant(len(self.texts) - 1), *arguments)


def call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def called_name(node: ast.AST) -> str | None:
    """`raises` for `pytest.raises(…)` and `raises(…)`."""
    if not isinstance(node, ast.Call):
        return None
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
