"""The stranger's side: runs one program in its own process and answers requests about it.

Only ever loaded inside a sandbox, after everything that confines it is in place. Whatever this file says, the program
can rewrite in its own process; so nothing here protects the parent, and the parent believes nothing but plain data.

Requests and answers are frames: four bytes of length, then `plain.encode` of a tuple. An answer is (kind, value,
message, args); args are the call's own, as they are after it, where it could have changed one.
    ("define", program)               -> "value" (None), "exception" (its class's name) or "memory"
    ("call", function, args, kwargs)  -> the same, or "iterator" (a list of its items), "missing", "unplain" or "flood"
    ("run", program, stdin)           -> the process ends; an answer only where an exception ended the program
"""

import posix
import sys

from ruyi_rl.rewards.sandbox.conversion import converted, is_iterator
from ruyi_rl.rewards.sandbox.plain import TooLarge, Unplain, decode, encode

CHANNEL = 3
STDIN = ".stdin"
MAX_MESSAGE = 500


def serve(limit: int) -> None:
    """Answer requests on file descriptor `CHANNEL` until it is closed; never returns.

    Args:
        limit: bytes of an answer.
    """
    module = type(sys)("solution")
    sys.argv = ["solution.py"]
    # As deep as in a process of its own: our frames below it do not count.
    sys.setrecursionlimit(sys.getrecursionlimit() + _depth())
    while (request := _receive()) is not None:
        action = request[0]
        if action == "run":
            _run(request[1], request[2], limit)
        elif action == "define":
            answer = _define(module, request[1], limit)
        else:
            answer = _call(module, *request[1:], limit)
        _flush()
        _send(answer)
    posix._exit(0)


def _define(module: object, program: str, limit: int) -> bytes:
    # dataclasses, pickle and typing look a class's module up by its name.
    sys.modules["solution"] = module
    try:
        _execute(program, module)
    except MemoryError:
        return _plain("memory", limit)
    except BaseException as error:  # noqa: BLE001  a stranger's program raises what it likes
        return _exception(error, limit)
    return _plain("value", limit)


def _call(module: object, name: str, args: tuple, kwargs: dict, limit: int) -> bytes:
    function = module.__dict__.get(name)
    if not callable(function):
        return _plain("missing", limit, message=f"the program defines no function {name}")
    try:
        value = function(*args, **kwargs)
    except MemoryError:
        return _plain("memory", limit)
    except BaseException as error:  # noqa: BLE001
        return _exception(error, limit)
    try:
        return _answer(value, args, limit)
    except TooLarge as error:
        return _plain("flood", limit, message=str(error))
    except Unplain as error:
        return _plain("unplain", limit, message=str(error))
    except MemoryError:
        return _plain("memory", limit)
    except BaseException as error:  # noqa: BLE001  of an iterator's own code
        return _exception(error, limit)


def _answer(value: object, args: tuple, limit: int) -> bytes:
    kind = "iterator" if is_iterator(value) else "value"
    if kind == "iterator":
        # Its code may change the arguments, too.
        value = converted(value, limit)
    args = _changed(args, limit)
    try:
        return _plain(kind, limit, value, args=args)
    except Unplain:  # rare, so that all other values are gone through once only
        return _plain(kind, limit, converted(value, limit), args=args)


def _changed(args: tuple, limit: int) -> list | None:
    if not any(type(argument) in (list, dict, set) for argument in args):
        return None
    try:
        encode(args, limit)
        return list(args)
    except Unplain:
        pass
    try:
        return converted(list(args), limit)
    except Unplain:
        return None


def _plain(kind: str, limit: int, value: object = None, message: str = "", args: list | None = None) -> bytes:
    # The limit is the value's own; a message must always fit.
    return encode((kind, value, message, args), limit + 4096)


def _exception(error: BaseException, limit: int) -> bytes:
    name = type(error).__name__[:100]
    try:
        text = str(str(error))[:MAX_MESSAGE]
    except BaseException:  # noqa: BLE001  its own __str__ may raise, too
        text = ""
    return _plain("exception", limit, name, f"{name}: {text}" if text else name)


def _execute(program: str, module: object) -> None:
    exec(compile(program, "solution.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102


def _run(program: str, stdin: str, limit: int) -> None:
    """The program as a script, with the ends of a script: exit status, threads waited for, atexit; never returns."""
    source = posix.open(STDIN, posix.O_RDWR | posix.O_CREAT | posix.O_TRUNC, 0o600)
    data = stdin.encode("utf-8", "surrogateescape")
    while data:
        data = data[posix.write(source, data) :]
    posix.lseek(source, 0, 0)
    posix.dup2(source, 0)
    posix.close(source)
    module = sys.modules["__main__"] = type(sys)("__main__")
    status = 0
    try:
        _execute(program, module)
    except SystemExit as error:
        status = error.code if type(error.code) is int else 0 if error.code is None else 1
    except MemoryError:
        status = 1
        _send(_plain("memory", limit))
    except BaseException as error:  # noqa: BLE001
        status = 1
        _send(_exception(error, limit))
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
    finally:
        _flush()
        posix._exit(status & 0xFF)


def _depth() -> int:
    frame, depth = sys._getframe(), 3
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with _Suppress():
            stream.flush()


class _Suppress:
    """`contextlib.suppress(BaseException)`, without its imports: anything may stand in the place of stdout."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> bool:
        return True


def _receive() -> tuple | None:
    head = _read(4)
    return decode(_read(int.from_bytes(head, "little"))) if len(head) == 4 else None


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = posix.read(CHANNEL, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(answer: bytes) -> None:
    data = len(answer).to_bytes(4, "little") + answer
    while data:
        data = data[posix.write(CHANNEL, data) :]
