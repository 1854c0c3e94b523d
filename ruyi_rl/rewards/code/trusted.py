"""The trusted process: it runs a row's own tests, and asks its parent for what the confined program answers.

A script of its own that imports nothing of this package, so that it starts fast and forks cheap: every examination runs
in a fork, which may hang or break its globals without harm to the next one. Frames on the socket are a length and
marshalled plain data; both ends are ours.
"""

import builtins
import importlib
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys
from types import GeneratorType
from typing import NoReturn

MEMORY = 4 * 2**30
"""Bytes of address space of one examination: a program's answer may make a test ask for any amount."""


class ProgramEnded(BaseException):
    """The program will give no answer: no test may catch this."""


class ProgramError(Exception):
    """The program raised an exception of a class that is not built in."""


class Unusable(BaseException):
    """The tests themselves are broken; no program is to blame."""


def items_of(values: list):
    """What stands for an iterator that the program returned: it can be gone through once."""
    yield from values


def send(channel: socket.socket, message: object) -> None:
    data = marshal.dumps(message)
    channel.sendall(struct.pack("!Q", len(data)) + data)


def receive(channel: socket.socket) -> object:
    """The next frame. Raises EOFError where the other end is closed."""
    (length,) = struct.unpack("!Q", _exactly(channel, 8))
    return marshal.loads(_exactly(channel, length))


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(length - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def plain(value):
    """A test's argument as plain data: subclasses become what they derive from; ranges, arrays and the program's own
    iterators become lists.

    Raises:
        TypeError: where it cannot be plain data, such as a function.
    """
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if value is None:
        return None
    if isinstance(value, dict):
        return {plain(key): plain(element) for key, element in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(plain, value))
    if isinstance(value, range):
        return list(value)
    if isinstance(value, GeneratorType) and value.gi_code is items_of.__code__:
        return plain(list(value))
    if callable(getattr(value, "tolist", None)):  # numpy's arrays and numbers
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} is no plain data")


class Examiner:
    """Counts what the tests assert, and calls the program for them."""

    def __init__(self, channel: socket.socket, task: dict):
        self.channel, self.task = channel, task
        self.exceptions = {name: type(name, (ProgramError,), {}) for name in task["exceptions"]}
        self.passed = self.failed = self.calls = self.answers = self.ended = self.asserting = 0
        self.reached: set[int] = set()
        self.entered: set[int] = set()
        self.unexpected: list[Exception] = []
        """The program's exceptions that no handler of the tests has taken yet. Python takes some itself: StopIteration
        ends a `map`, IndexError an iteration, AttributeError a `hasattr`; no test would notice."""
        self.raised: Exception | None = None
        self.leaving: BaseException | None = None
        self.changes: list[tuple[object, object]] = []
        self.failure: tuple[str, str] | None = None

    def run(self) -> dict:
        """All tests; what the parent makes the verdict of.

        Raises:
            Unusable: the tests fail before they have called the program, or call it with what is no plain data.
        """
        proxies = {name: self._proxy(name) for name in self.task["functions"]}
        space = {
            "__name__": "tests",
            "__assertion__": lambda site, loose: _Assertion(self, site, loose),
            "__reached__": self._reach,
            "__entered__": self.entered.add,
            "__expected__": lambda: self._expect(sys.exception()),
            "__leaving__": lambda: _Leaving(self),
            "__swallowed__": lambda: self._expect(self.leaving),
            "__caught__": lambda kind: self._expect(self.raised if isinstance(self.raised, kind) else None),
            **self.exceptions,
            **proxies,
        }
        whole = self._run(self.task["setup"], space)
        space |= proxies
        if whole:
            whole = self._check(space) if self.task["function"] else self._statements(space)
        # However the tests took it: a program that gave no answer has not passed.
        whole = whole and not self.ended and not self.failed
        reason, message = self.failure or ("passed", "")
        return {"passed": self.passed, "failed": self.failed, "whole": whole, "reason": reason, "message": message}

    def _proxy(self, name: str):
        def proxy(*args, **kwargs):
            return self._call(name, args, kwargs)

        proxy.__name__ = proxy.__qualname__ = name
        return proxy

    def _call(self, function: str, args: tuple, kwargs: dict):
        """Ask the parent for the program's answer."""
        self.calls += 1
        try:
            send(self.channel, ("call", function, plain(list(args)), plain(kwargs)))
        except (TypeError, ValueError, RecursionError) as error:
            # Later arguments may be made of the program's answers.
            self._end("unplain" if self.answers else "unusable", f"an argument of {function}: {error}")
        kind, value, detail = receive(self.channel)
        if kind in ("value", "iterator"):
            self.answers += 1
            for before, after in zip(args, detail or (), strict=False):
                self._change(before, after, at_once=value is None or not self.asserting)
            return items_of(value) if kind == "iterator" else value
        if kind == "raise" and not _ends(value):
            self.raised = self._exception(value, detail)
            self.unexpected.append(self.raised)
            raise self.raised
        self._end("exception" if kind == "raise" else kind, detail)

    def _end(self, reason: str, message: str) -> NoReturn:
        self.ended += 1
        self._fail(reason, message)
        raise ProgramEnded(reason, message)

    def _change(self, before: object, after: object, at_once: bool) -> None:
        """Make an argument what the program made of it: at once, or when the assertion is evaluated.

        Else a program could fit the argument to its answer, as in `assert f(x) == sorted(x)`. A function that returns
        None works in place: what it did is what is asserted.
        """
        if not at_once:
            self.changes.append((before, after))
        elif isinstance(before, list | bytearray):
            before[:] = after
        elif isinstance(before, dict | set):
            before.clear()
            before.update(after)

    def evaluated(self) -> None:
        """An assertion has been evaluated."""
        self.asserting -= 1
        changes, self.changes = ([], self.changes) if self.asserting else (self.changes, [])
        for before, after in changes:
            self._change(before, after, at_once=True)

    def _expect(self, error: BaseException | None) -> None:
        """The tests have taken an exception as one that they expect, and with it those that led to it."""
        while error is not None:
            if isinstance(error, BaseExceptionGroup):
                for each in error.exceptions:
                    self._expect(each)
            self.unexpected = [each for each in self.unexpected if each is not error]
            error = error.__context__

    def settle(self) -> bool:
        """Whether the tests have expected all exceptions of the program so far; if not, that is a failure."""
        if not self.unexpected:
            return True
        reason, message = _reason(self.unexpected[0])
        self._fail(reason, f"no test expects {message}")
        self.failed += 1
        self.unexpected = []
        return False

    def _exception(self, name: str, message: str) -> Exception:
        kind = self.exceptions.get(name) or getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, BaseExceptionGroup):
            kind = ProgramError
        # UnicodeDecodeError and its like take more than a message.
        error = kind.__new__(kind) if issubclass(kind, UnicodeError) and kind is not UnicodeError else kind(message)
        error.of_program = True
        return error

    def _fail(self, reason: str, message: str) -> None:
        if reason == "unusable":
            raise Unusable(message)
        self.failure = self.failure or (reason, message)

    def _run(self, code, space: dict) -> bool:
        """Run code that belongs to no test; False where the program failed it."""
        try:
            exec(code, space)  # noqa: S102  to run the tests' source is what this process is for
        except BaseException as error:  # noqa: BLE001  ProgramEnded and a test's SystemExit too
            self._blame(error)
            self.failed += len(self.task["texts"])
            return False
        return self.settle()

    def _blame(self, error: BaseException) -> None:
        if isinstance(error, Unusable):
            raise error
        if not self.calls and not isinstance(error, AssertionError):
            raise Unusable(f"{type(error).__name__}: {str(error)[:200]}") from error
        self._fail(*_reason(error))

    def _check(self, space: dict) -> bool:
        """Run `check(candidate)`: every assertion counts, and those that it no longer comes to count as failed."""
        ((code, sites, *needed),) = self.task["steps"]
        if not self._run(code, space):
            return False
        try:
            space["check"](self._proxy(self.task["function"]))
        except BaseException as error:  # noqa: BLE001
            self._blame(error)
            unreached = sites - len(self.reached)
            self.failed += unreached if hasattr(error, "counted") else max(unreached, 1)
            return False
        self.settle()
        self._come_to(*needed)
        return not self.failed

    def _come_to(self, sites: tuple[int, ...], loops: tuple[int, ...]) -> bool:
        """Whether the tests have come to all that every run comes to; if not, that is a failure: a loop over what the
        program gave may have been one over nothing."""
        missing = [self.task["texts"][site] for site in sites if site not in self.reached]
        missing = missing or ["a loop" for loop in loops if loop not in self.entered]
        if missing:
            self._fail("failed", f"never reached: {missing[0]}")
        self.failed += len(missing)
        return not missing

    def _statements(self, space: dict) -> bool:
        """Run the statements; each that asserts something is one test, and each that fails is one failed."""
        passed = failed = 0
        for code, sites, *needed in self.task["steps"]:
            self.passed = self.failed = 0
            self.unexpected = []
            try:
                exec(code, space)  # noqa: S102
                good = self.settle() and self._come_to(*needed)
                if good and sites and (self.failed or not self.passed):
                    self._fail("failed", "a test asserted nothing")
                    good = False
            except BaseException as error:  # noqa: BLE001
                self._blame(error)
                good = False
            passed, failed = passed + (good and sites > 0), failed + (not good)
            if failed and self.task["stop"]:
                break
        self.passed, self.failed = passed, failed
        return failed == 0

    def _reach(self, site: int) -> None:
        """An exception came as the test expects it."""
        self.reached.add(site)
        error = sys.exception()
        if isinstance(error, ProgramEnded | Unusable):
            raise error
        if not isinstance(error, AssertionError) or hasattr(error, "of_program"):
            self.passed += 1


class _Assertion:
    """Counts one run of an `assert`."""

    def __init__(self, examiner: Examiner, site: int, loose: bool):
        self.examiner, self.site, self.loose = examiner, site, loose

    def __enter__(self) -> None:
        self.examiner.reached.add(self.site)
        self.examiner.asserting += 1

    def __exit__(self, kind, error, trace) -> bool:
        examiner = self.examiner
        examiner.evaluated()
        if error is None:
            examiner.passed += examiner.settle()
            return False
        if not self.loose or isinstance(error, Unusable):
            return False
        reason, message = _reason(error)
        examiner._fail(reason, f"{examiner.task['texts'][self.site]}: {message}")
        examiner.failed += 1
        examiner.unexpected = []
        error.counted = True
        # In a statement, the rest of it is the same test.
        return bool(examiner.task["function"]) and not examiner.task["stop"] and not isinstance(error, SystemExit)


class _Leaving:
    """Notes what leaves the body of a `with`."""

    def __init__(self, examiner: Examiner):
        self.examiner = examiner

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> bool:
        self.examiner.leaving = error
        return False


def _ends(name: str) -> bool:
    """Whether this exception of the program is one that `except Exception` would not catch: SystemExit and its like."""
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, Exception)


def _reason(error: BaseException) -> tuple[str, str]:
    """A reason code and a message."""
    if isinstance(error, ProgramEnded):
        return error.args
    reason = "exception" if hasattr(error, "of_program") else "failed"
    return reason, f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")


def examine(channel: socket.socket, task: dict) -> None:
    """One examination, in the fork; its last frame is ("verdict", …) or ("unusable", why)."""
    try:
        result = ("verdict", Examiner(channel, task).run())
    except Unusable as error:
        result = ("unusable", str(error))
    send(channel, result)


def serve(channel: socket.socket) -> None:
    """One examination after the other until the parent is gone."""
    while True:
        try:
            task = receive(channel)
        except (EOFError, OSError):
            return
        ended, alive = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(ended)
                # The default action: ends a test that hangs even where nobody is left to kill it.
                signal.setitimer(signal.ITIMER_REAL, task["seconds"] + 1)
                if sys.platform == "linux":
                    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                examine(channel, task)
            finally:
                os._exit(0)
        os.close(alive)
        events = select.poll()
        events.register(ended, select.POLLIN)
        events.register(channel, 0)  # only its hang-up: the frames are the child's
        if channel.fileno() in dict(events.poll()):
            os.kill(child, signal.SIGKILL)
        os.close(ended)
        _, status = os.waitpid(child, 0)
        try:
            send(channel, ("ended", os.waitstatus_to_exitcode(status)))
        except OSError:
            return


if __name__ == "__main__":
    for ready in ("collections", "copy", "itertools", "math", "random", "re", "string", "typing"):
        importlib.import_module(ready)  # once, not in every fork
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    serve(socket.socket(fileno=int(sys.argv[1])))
