"""The tests of a data row, in any of the shapes that data sets use, as one of three kinds."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call of a function of the program, and the plain data that it has to return."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class CallTests:
    """Calls, made in order in one process."""

    calls: tuple[Call, ...]

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.function for call in self.calls))


@dataclass(frozen=True)
class ScriptTests:
    """Runs of the whole program: what it reads, and what it has to print."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class AssertTests:
    """Python source that tests the program with `assert`."""

    setup: str
    """Runs before the tests, on the trusted side only: imports, helpers, data."""
    statements: tuple[str, ...]
    """Each one test, in one name space; () where `check` is given."""
    check: str | None = None
    """Source that defines `check(candidate)`, as in HumanEval."""
    function: str | None = None
    """The function that is asked for; `check` needs it."""
    prompt: str | None = None
    """The code that the completion continues, if it does; its helpers are also the tests'."""


_SETUP = ("test_imports", "setup", "test_setup_code")


class BadTests(ValueError):
    """A row whose tests cannot be used; the message says why."""


Tests = CallTests | ScriptTests | AssertTests


def read_tests(row: Any, **beside: Any) -> Tests | None:
    r"""Read a row's tests.

    Args:
        row: None, or one of these as an object or as its JSON text (fields that are None count as absent):
            - `{"asserts": ["assert f(2) == 4", …], "setup": "…"}`;
            - `{"test": "def check(candidate): …", "entry_point": "f", "prompt": "def f(x): …"}`, HumanEval's;
            - `{"test_list": ["assert …", …], "test_setup_code": "…", "test_imports": […]}`, MBPP's;
            - `{"inputs": ["2\n", …], "outputs": ["4\n", …]}`, a program's standard input and output; an input or output
              in lines may be a list of them;
            - `{"calls": [{"function": "f", "args": [2], "kwargs": {}, "output": 4}, …]}`; `entry_point` beside `calls`
              stands for a `function` that is the same in all;
            - `{"calls": {"function": "f", "args": [[2], …], "kwargs": [{}, …], "expected": [4, …]}}`, the same in
              columns;
            or a list of assert statements, or source text: with `check(candidate)`, or of statements that are one
            test each where they assert something.
        beside: entry_point, prompt, setup and test_imports from other columns, for a row that lacks them.

    Returns:
        The tests; None where the row has none.

    Raises:
        BadTests: a row of another shape, one that mixes shapes, or lists of unequal length.
    """
    if isinstance(row, str):
        row = _from_text(row)
    if isinstance(row, Sequence) and not isinstance(row, str):
        row = {"asserts": row}
    if row is None:
        return None
    if not isinstance(row, Mapping):
        raise BadTests(f"tests are an object, its JSON text, a list of asserts or None, not {type(row).__name__}")
    row = {name: value for name, value in row.items() if value is not None}
    kinds = [kind for kind in ("asserts", "test", "test_list", "calls", "inputs") if kind in row]
    if len(kinds) != 1:
        problem = f"has {' and '.join(kinds)}" if kinds else f"has only {', '.join(map(str, row)) or 'no fields'}"
        raise BadTests(f"a row has one of asserts, test, test_list, calls and inputs; this one {problem}")
    row = {name: value for name, value in beside.items() if value is not None} | row
    if kinds == ["calls"]:
        return CallTests(tuple(_calls(row["calls"], row.get("entry_point"))))
    if kinds == ["inputs"]:
        return _scripts(row)
    return _asserts(kinds[0], row)


def _from_text(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        if "def check(" in text:
            return {"test": text}
        if "assert" in text and text.lstrip()[:1] not in "{[":
            return {"asserts": text}
        raise BadTests(f"tests are neither JSON nor source that asserts something: {error}") from error


def _asserts(kind: str, row: Mapping[str, Any]) -> AssertTests:
    setup = "\n".join(text for name in _SETUP for text in _texts(name, row.get(name, "")) if text)
    function, prompt = row.get("entry_point"), row.get("prompt")
    if not isinstance(function, str | None) or not isinstance(prompt, str | None):
        raise BadTests("entry_point and prompt are texts")
    if kind == "test":
        if not isinstance(row["test"], str) or not function:
            raise BadTests("test, source that defines check(candidate), needs entry_point, the function's name")
        return AssertTests(setup, (), row["test"], function, prompt)
    statements = _statements(row[kind]) if isinstance(row[kind], str) else _texts(kind, row[kind])
    statements = tuple(text for text in statements if text.strip())
    return AssertTests(setup, statements, None, function, prompt)


def _statements(source: str) -> list[str]:
    """The statements of a test script, each to be counted for itself."""
    try:
        return [ast.unparse(node) for node in ast.parse(source).body]
    except (SyntaxError, ValueError) as error:
        raise BadTests(f"the tests do not compile: {error}") from error


def _scripts(row: Mapping[str, Any]) -> Tests:
    inputs, outputs = row["inputs"], row.get("outputs")
    if not _is_list(inputs) or not _is_list(outputs):
        raise BadTests("inputs and outputs are two lists")
    if len(inputs) != len(outputs):
        raise BadTests(f"{len(inputs)} inputs but {len(outputs)} outputs")
    if row.get("fn_name"):
        raise BadTests("fn_name beside inputs (APPS's calls): write the row as calls")
    return ScriptTests(tuple(map(_lines, inputs)), tuple(map(_lines, outputs)))


def _calls(calls: Any, entry_point: str | None) -> list[Call]:
    if isinstance(calls, Mapping):
        args, outputs = calls.get("args"), calls.get("expected", calls.get("output"))
        kwargs = calls.get("kwargs") or [{}] * len(args or ())
        if not _is_list(args) or not _is_list(outputs) or not _is_list(kwargs):
            raise BadTests("calls in columns: args, expected and, if any, kwargs are lists")
        if not len(args) == len(outputs) == len(kwargs):
            raise BadTests(f"{len(args)} args, {len(kwargs)} kwargs and {len(outputs)} expected")
        function = calls.get("function")
        columns = zip(args, kwargs, outputs, strict=True)
        calls = [{"function": function, "args": a, "kwargs": k, "output": output} for a, k, output in columns]
    if not _is_list(calls):
        raise BadTests("calls is a list of objects, or an object of columns")
    return [_call(call, entry_point) for call in calls]


def _call(call: Any, entry_point: str | None) -> Call:
    if not isinstance(call, Mapping) or not ("output" in call or "expected" in call):
        raise BadTests("a call is an object with function, args and output")
    function = call.get("function") or entry_point
    args, kwargs = call.get("args", []), call.get("kwargs") or {}
    if not isinstance(function, str) or not _is_list(args) or not isinstance(kwargs, Mapping):
        raise BadTests("of a call, function is a name, args a list and kwargs an object")
    return Call(function, list(args), dict(kwargs), call["output"] if "output" in call else call["expected"])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _is_list(texts) or not all(isinstance(text, str) for text in texts):
        raise BadTests(f"{name} is a text or a list of texts")
    return list(texts)


def _lines(value: Any) -> str:
    if _is_list(value) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadTests(f"an input or output is a text or a list of lines, not {type(value).__name__}")
    return value
