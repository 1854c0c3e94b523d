"""Test source, compiled so that every assertion is counted. The source comes from the data and is trusted; what it
tests is not here but behind proxies, see `ruyi_rl.rewards.code.trusted`."""

import ast
import builtins
import copy
import symtable
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType

from ruyi_rl.rewards.code.continuation import read_stub
from ruyi_rl.rewards.code.direct import FUNCTIONS, DirectAssertion, is_literal, read_assertions
from ruyi_rl.rewards.code.rows import AssertTests, BadTests
from ruyi_rl.rewards.code.sites import RAISES, ExpectationMarker, SiteMarker, called_name

_PLAIN = (None, True, 0, 0.0, 0j, "", b"", [], (), {}, set(), frozenset())
_PLAIN_ATTRIBUTES = frozenset(name for value in _PLAIN for name in dir(value))
_PREPARED = "<setup>"


@dataclass(frozen=True)
class Examination:
    """Compiled tests; all that the trusted process needs besides the program's answers."""

    setup: CodeType
    """Imports, helpers and data of the tests."""
    steps: tuple[tuple[CodeType, int, tuple[int, ...], tuple[int, ...]], ...]
    """Code to run in order after the setup, the number of its assertion sites, and which sites and loops every run
    must come to. With `function`, the one step defines `check`."""
    function: str | None
    """The function that `check` is called with; None: every step with a site is one test."""
    functions: tuple[str, ...]
    """Names that stand for functions of the program."""
    exceptions: tuple[str, ...]
    """Names of the program's own exception classes."""
    texts: tuple[str, ...]
    """The source of every assertion site, for messages."""
    direct: tuple[DirectAssertion, ...] | None
    """The same tests where they need no trusted process."""


def compile_tests(tests: AssertTests) -> Examination:
    """Compile a row's tests.

    A site is an `assert`, an exception handler (an expected exception has been raised) or a `raises(…)`.

    Raises:
        BadTests: source that does not compile, asserts nothing, tests no function, or needs objects of the program's
            own classes, which the sandbox gives no one.
    """
    stub = read_stub(tests.prompt, tests.function)
    setup = _parse((stub.preamble if stub else "") + tests.setup)
    sources = [_parse(tests.check)] if tests.check is not None else [_parse(text) for text in tests.statements]
    whole = ast.Module([node for tree in (setup, *sources) for node in tree.body], [])
    if tests.check is not None and not any(
        isinstance(node, ast.FunctionDef) and node.name == "check" for node in whole.body
    ):
        raise BadTests("test does not define check(candidate)")
    foreign = _foreign_names(ast.unparse(whole))
    modules = (foreign & _module_names(whole)) - {tests.function}
    exceptions = (foreign - modules) & _exception_names(whole)
    functions = foreign - exceptions - modules
    if tests.function:
        functions.add(tests.function)
    elif not functions:
        functions = _builtin_under_test(sources)
    if not functions:
        raise BadTests("the tests call no function of the program")
    _refuse_objects(whole, functions | ({"candidate"} if tests.check is not None else set()))
    direct = _direct(tests, setup, sources, functions)
    setup.body[:0] = [ast.Import([ast.alias(name)]) for name in sorted(modules)]
    ExpectationMarker().visit(setup)
    marker = SiteMarker(_helpers(whole), tests.check is not None)
    steps = []
    for tree in sources:
        sites, required, loops = len(marker.texts), len(marker.required), len(marker.loops)
        marker.visit(tree)
        needed = tuple(marker.required[required:]), tuple(marker.loops[loops:])
        steps.append((_compile(tree, "<tests>"), len(marker.texts) - sites, *needed))
    if not marker.texts:
        raise BadTests("the tests assert nothing")
    check_of = tests.function if tests.check is not None else None
    names = tuple(sorted(functions)), tuple(sorted(exceptions))
    return Examination(_compile(setup, _PREPARED), tuple(steps), check_of, *names, tuple(marker.texts), direct)


def _direct(
    tests: AssertTests, setup: ast.Module, sources: list[ast.Module], functions: set[str]
) -> tuple[DirectAssertion, ...] | None:
    """The tests as direct assertions, where all of them are and the setup does no more than define and import."""
    names = {name: name for name in functions}
    body = [node for tree in sources for node in tree.body]
    if tests.check is not None:
        checks = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        others = [node for node in body if node not in checks]
        parameters = checks[0].args.args
        if len(checks) > 1 or len(parameters) != 1 or checks[0].decorator_list:
            return None
        names[parameters[0].arg] = tests.function
        body = checks[0].body
    else:
        others = []
        if any(len(tree.body) != 1 for tree in sources):
            return None
    quiet = ast.Import | ast.ImportFrom | ast.FunctionDef
    bound = {node.name for node in setup.body + others if isinstance(node, ast.FunctionDef)}
    for node in setup.body + others:
        literal = isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets)
        if not isinstance(node, quiet) and not (literal and is_literal(node.value)):
            return None
        if literal:
            bound |= {target.id for target in node.targets}
    return None if bound & (set(names) | set(FUNCTIONS)) else read_assertions(copy.deepcopy(body), names)


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"the tests do not compile: {type(error).__name__}: {error}") from error


def _compile(tree: ast.Module, name: str) -> CodeType:
    try:
        return compile(ast.fix_missing_locations(tree), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadTests(f"the tests do not compile: {error}") from error


def _foreign_names(source: str) -> set[str]:
    """Global names that the source reads but never binds, and that are no builtins."""
    read, bound, tables = set(), set(), [symtable.symtable(source, "<tests>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            outermost = table.get_type() == "module"
            binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
            if binds and (outermost or symbol.is_declared_global()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (outermost or symbol.is_global()):
                read.add(symbol.get_name())
    return read - bound - set(dir(builtins)) - {"__name__", "__file__"}


def _helpers(tree: ast.Module) -> set[str]:
    """Functions of the tests' own that assert."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "check"]
    return {node.name for node in functions if any(isinstance(part, ast.Assert) for part in ast.walk(node))}


def _exception_names(tree: ast.Module) -> set[str]:
    """Names in `except …`, `raises(…)` and `suppress(…)`."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type:
            found.append(node.type)
        elif isinstance(node, ast.Call) and called_name(node) in RAISES:
            found += node.args[:1]
        elif called_name(node) == "suppress":
            found += node.args
    return {name.id for node in found for name in ast.walk(node) if isinstance(name, ast.Name)}


def _module_names(tree: ast.Module) -> set[str]:
    """Modules of the standard library that the tests use without importing them: `math` of `math.isclose(…)`."""
    bases = {node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_name(node.value)}
    return bases & sys.stdlib_module_names


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _builtin_under_test(sources: Iterable[ast.Module]) -> set[str]:
    """The builtin that a program redefines under the same name (`def sum(a, b)`): the only one that is called in every
    assertion; else none."""
    called = [
        {node.func.id for node in ast.walk(statement) if isinstance(node, ast.Call) and _is_name(node.func)}
        for tree in sources
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Assert)
    ]
    common = set.intersection(*called) & set(dir(builtins)) if called else set()
    return common if len(common) == 1 else set()


def _refuse_objects(tree: ast.Module, functions: set[str]) -> None:
    """Refuse tests that treat what a function returned as an object with attributes of its own, or give it a function:
    only plain data crosses."""

    def is_result(node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and _is_name(node.func) and node.func.id in functions

    holders = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_result(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    # `Pair` of `longest([Pair(1, 2)])`: a name like a class's, and all that it makes is handed on.
    calls = [node for node in ast.walk(tree) if is_result(node)]
    handed = {id(inner) for node in calls for inner in ast.walk(node) if inner is not node}
    made = [node for node in calls if node.func.id[0].isupper() and "_" not in node.func.id]
    compared = {node.func.id for node in made if id(node) not in handed}
    for node in made:
        if node.func.id not in compared:
            raise BadTests(f"the tests need an object of the program's own, not plain data: {ast.unparse(node)}")
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} - functions
    for node in ast.walk(tree):
        if is_result(node):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if isinstance(argument, ast.Lambda) or (_is_name(argument) and argument.id in defined):
                    raise BadTests(f"a function is no plain data: {ast.unparse(node)}")
        if isinstance(node, ast.Attribute):
            held = is_result(node.value) or (_is_name(node.value) and node.value.id in holders | functions)
            if held and (isinstance(node.ctx, ast.Store) or node.attr not in _PLAIN_ATTRIBUTES):
                raise BadTests(f"the tests need an object of the program's own, not plain data: {ast.unparse(node)}")
