"""From a completion and a row's tests to a verdict."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

from ruyi_rl.rewards.code.comparison import same_output, same_value
from ruyi_rl.rewards.code.continuation import read_stub, whole_programs
from ruyi_rl.rewards.code.examiner import Answer, Examiner
from ruyi_rl.rewards.code.extraction import extract_program
from ruyi_rl.rewards.code.instrumentation import Examination, compile_tests
from ruyi_rl.rewards.code.options import CodeOptions
from ruyi_rl.rewards.code.rows import AssertTests, BadTests, CallTests, ScriptTests, Tests, read_tests
from ruyi_rl.rewards.code.verdict import Verdict
from ruyi_rl.rewards.sandbox import Confined, Outcome, Sandbox, TooLarge, Unplain

_NOT_COMPILED = ("SyntaxError", "IndentationError", "TabError")
_ANSWERS = ("value", "iterator")
# Seconds in which a program does not compile; one that takes longer raises SyntaxError itself. A second reading of the
# completion is tried only after the former, so that both together stay within the limit.
_AT_ONCE = 0.5
# The sandbox's clock strikes first, so that the trusted process need not be killed for a program that hangs.
_GRACE = 0.4

compile_once = functools.lru_cache(maxsize=256)(compile_tests)
"""The completions of a group share their tests."""


class CodeJudge:
    """Judges programs one after the other; holds the sandbox and the trusted process. Use it in a `with` block."""

    def __init__(self, options: CodeOptions):
        self.options = options
        self._stop = options.credit == "all"
        self._sandbox = Sandbox(options.sandbox_options())
        self._examiner = Examiner()

    def __enter__(self) -> Self:
        self._sandbox.__enter__()
        return self

    def __exit__(self, *ending: object) -> None:
        self._examiner.close()
        self._sandbox.__exit__(*ending)

    def judge(self, text: str, row: Any, **columns: Any) -> Verdict:
        """The verdict on one completion.

        Args:
            text: the completion.
            row: its tests, and
            columns: what stands beside them, see `read_tests`.
        """
        try:
            tests = read_tests(row, **columns)
            if tests is None:
                return Verdict("no_tests")
            run, programs = self._prepare(text, tests)
        except BadTests as error:
            return Verdict("bad_tests", message=str(error))
        verdict = Verdict("no_program")
        for program in programs:
            with self._sandbox.open(program, self.options.language) as confined:
                try:
                    verdict = run(confined)
                except (Unplain, TooLarge) as error:
                    return Verdict("bad_tests", message=f"an argument is {error}")
            if verdict.reason != "syntax":
                break
        return verdict

    def _prepare(self, text: str, tests: Tests) -> tuple[Callable[[Confined], Verdict], list[str]]:
        """How to test a program, and the programs that the completion may mean."""
        language = self.options.language
        if isinstance(tests, AssertTests):
            compiled = compile_once(tests)
            program = extract_program(text, compiled.functions, language)
            stub = read_stub(tests.prompt, tests.function)
            programs = whole_programs(program, stub, tests.function) if program else []
            run = self._assertions if compiled.direct is None else self._direct_assertions
            return functools.partial(run, tests=compiled), programs
        functions = tests.functions if isinstance(tests, CallTests) else ()
        program = extract_program(text, functions, language)
        run = self._calls if isinstance(tests, CallTests) else self._scripts
        return functools.partial(run, tests=tests), [program] if program else []

    def _calls(self, confined: Confined, tests: CallTests) -> Verdict:
        passed, first = 0, None
        for call in tests.calls:
            outcome = confined.call(call.function, call.args, call.kwargs)
            with _charging(confined):
                right = outcome.kind == "value" and same_value(call.output, outcome.value)
            if right:
                passed += 1
                continue
            shown = f"{call.function}({', '.join(map(repr, call.args))})"
            first = first or _fault(outcome, f"{shown[:120]}: a wrong result")
            if self._stop or first[0] == "syntax":
                break
        return _counted(passed, len(tests.calls), first)

    def _scripts(self, confined: Confined, tests: ScriptTests) -> Verdict:
        passed, first = 0, None
        for number, (given, expected) in enumerate(zip(tests.inputs, tests.outputs, strict=True), 1):
            outcome = confined.run(given)
            with _charging(confined):
                right = outcome.kind == "exit" and outcome.value == 0 and same_output(expected, outcome.stdout)
            if right:
                passed += 1
                continue
            # All of a script is the program's body.
            first = first or _fault(replace(outcome, loading=True), f"input {number}: a wrong output")
            if self._stop or first[0] == "syntax":
                break
        return _counted(passed, len(tests.inputs), first)

    def _direct_assertions(self, confined: Confined, tests: Examination) -> Verdict:
        passed, first = 0, None
        for assertion in tests.direct:
            answer = Outcome("value")
            if assertion.function is not None:
                answer = confined.call(assertion.function, assertion.args, assertion.kwargs)
            fault = _fault(answer, "AssertionError")
            if answer.kind in _ANSWERS:
                try:
                    with _charging(confined):
                        right = assertion.holds(iter(answer.value) if answer.kind == "iterator" else answer.value)
                    if right:
                        passed += 1
                        continue
                except (TypeError, ValueError, ArithmeticError) as error:
                    fault = "failed", f"{type(error).__name__}: {error}"
            first = first or (fault[0], f"{assertion.text}: {fault[1]}")
            if self._stop or fault[0] == "syntax":
                break
        return _counted(passed, len(tests.direct), first)

    def _assertions(self, confined: Confined, tests: Examination) -> Verdict:
        answered = False

        def ask(function: str, args: list, kwargs: dict) -> Answer:
            nonlocal answered
            try:
                outcome = confined.call(function, args, kwargs)
            except (Unplain, TooLarge) as error:
                if not answered:
                    raise
                # It may be made of what the program answered before: that must not spare it its 0.
                return "flood" if isinstance(error, TooLarge) else "unplain", None, f"an argument is {error}"
            if outcome.kind in _ANSWERS:
                answered = True
                return outcome.kind, outcome.value, outcome.args
            if outcome.kind == "exception" and not outcome.loading:
                return "raise", outcome.value, outcome.message.removeprefix(f"{outcome.value}: ")
            reason, message = _fault(outcome)
            return reason, None, message

        kind, found = self._examiner.examine(tests, ask, self.options.seconds + _GRACE, self._stop)
        if kind == "unusable":
            return Verdict("bad_tests", message=found)
        if kind != "verdict":
            return Verdict(kind, message=found)
        passed, total = found["passed"], found["passed"] + found["failed"]
        if found["whole"] and passed == total > 0:
            return Verdict("passed", passed, total)
        if found["reason"] == "passed":
            return Verdict("failed", passed, max(total, passed + 1), "no assertion was reached")
        # Whatever was counted, at least one test has not passed.
        return Verdict(found["reason"], passed, max(total, passed + 1), found["message"])


@contextlib.contextmanager
def _charging(confined: Confined) -> Iterator[None]:
    """A comparison, which may take long because the program has made it so: the time is the program's."""
    began = time.monotonic()
    try:
        yield
    finally:
        confined.charge(time.monotonic() - began)


def _fault(outcome: Outcome, wrong: str = "") -> tuple[str, str]:
    """The reason code and the message of what did not pass; `wrong`: the message where a wrong answer came."""
    if outcome.kind in _ANSWERS or (outcome.kind == "exit" and outcome.value == 0):
        return "failed", wrong
    if outcome.kind == "exit":
        return "exception", f"exit status {outcome.value}"
    if outcome.loading and outcome.value in _NOT_COMPILED and outcome.seconds <= _AT_ONCE:
        return "syntax", outcome.message
    return outcome.kind, outcome.message


def _counted(passed: int, total: int, fault: tuple[str, str] | None) -> Verdict:
    if total == 0:
        return Verdict("no_tests")
    reason, message = fault or ("passed", "")
    return Verdict(reason, passed, total, message)
