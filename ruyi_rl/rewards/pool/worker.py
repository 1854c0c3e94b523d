"""The worker's side: calls one plugin for one chunk of completions after the other."""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ruyi_rl.rewards.pool.ambience import Ambience
from ruyi_rl.rewards.pool.frames import TAG, receive, send
from ruyi_rl.rewards.pool.values import MAX_NAME, MAX_NAMES, Failed, described, listed, logged, number, one_line

DUMP_SIGNAL = signal.SIGRTMIN + 7
"""Makes the worker write where it is; a number that libraries leave alone."""
CLOSED = 97
"""Exit status where the plugin has closed what the worker needs."""
PACKAGE = str(Path(__file__).parent)


def serve(channel: int, faults: int, memory: int) -> NoReturn:
    """Serves until it is killed.

    Args:
        channel: socket to the pool.
        faults: file that takes the stack at a crash, and at `DUMP_SIGNAL`.
        memory: bytes of private writable memory that this process, and each that it starts, may reserve.
    """
    # Not the address space: torch and CUDA reserve far more of that than they ever use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(faults, all_threads=False)
    faulthandler.register(DUMP_SIGNAL, faults, all_threads=False)
    tag, setup = _request(channel)
    settlement = Settlement(channel)
    try:
        plugin = Plugin(setup, settlement.settle)
        settlement.ambience.keep()
        ready = {"ready": True, "concurrent": plugin.concurrent}
    except BaseException as error:  # noqa: BLE001 - a stranger's module may raise anything while it is imported
        plugin, ready = None, {"ready": False, "message": _start_message(setup["path"], error)}
    settlement.settle()
    _reply(channel, tag, ready)
    while plugin:
        try:
            tag, request = _request(channel)
        except EOFError:
            break  # the pool has ended
        _reply(channel, tag, plugin.answer(request))
    # To be killed by the guard, which looks first what shared memory this process has.
    while True:
        signal.pause()


def _request(channel: int) -> tuple[bytes, dict[str, Any]]:
    """The next message and its tag, which says in the reply what that answers."""
    message = receive(channel)
    return message[:TAG], pickle.loads(memoryview(message)[TAG:])


def _reply(channel: int, tag: bytes, reply: dict[str, Any]) -> None:
    send(channel, tag + json.dumps(reply).encode())


class Settlement:
    """Makes sure after every call that this process can still serve the next one."""

    def __init__(self, channel: int):
        self._channel, self._process, self._socket = channel, os.getpid(), os.fstat(channel).st_ino
        self.ambience = Ambience()

    def settle(self) -> None:
        """Ends the process where it is none that may answer."""
        # A child that the plugin forked, and let run on into the worker's loop.
        if os.getpid() != self._process:
            os._exit(0)
        try:
            self.ambience.restore()
            # A plugin that closes every descriptor may have opened a file of its own under this number.
            intact = os.fstat(self._channel).st_ino == self._socket
        except OSError:
            intact = False
        if not intact:
            os._exit(CLOSED)


class Plugin:
    """The plugin's function.

    Args:
        setup: `path`, `kwargs` (pickled), `told` (for the start hook) and `sys_path`.
        settle: called after each call of the plugin's code, before anything else runs.
    """

    def __init__(self, setup: dict[str, Any], settle: Callable[[], None]):
        # Only now: what the pool's process can import, the plugin can.
        sys.path[:] = setup["sys_path"]
        from ruyi_rl.rewards.loading import is_async, load_function, start_hook

        self._settle, self._kwargs = settle, setup["kwargs"]
        self._function = load_function(setup["path"])
        check_callable(setup["path"], self._function)
        self._file, self._line = _definition(self._function)
        self.concurrent = is_async(self._function)
        self._batch: int | None = None
        self._whole: dict[str, bytes] = {}
        self._runner: Any = None
        hook = start_hook(setup["path"])
        if hook is not None:
            try:
                named = inspect.signature(hook).parameters
                told = {name: value for name, value in setup["told"].items() if name in named}
                self._result(hook, told | pickle.loads(self._kwargs))
            except Exception as error:
                raise StartError(described(error)) from error

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Calls the function.

        Args:
            request: `batch` (number of the pool's call), `count` (completions), `columns` (name -> pickled values, one
                a completion) and, where they are another batch's than before, `whole` (name -> pickled value).

        Returns:
            What `json` takes: `rewards`, `failures` [index, kind, message, place], `extra`, `metrics`, `seconds`; or
            `failed` [kind, message, place] where there is nothing for any completion.
        """
        if "whole" in request:
            self._batch, self._whole = request["batch"], request["whole"]
        started = time.perf_counter()
        log = Log(request["count"])
        try:
            returned = self._call(request["columns"], log)
            seconds = time.perf_counter() - started
            values = listed(returned, request["count"])
        except Failed as failed:
            place = failed.place or (self._defined if failed.kind != "unpicklable" else "")
            return {"failed": [failed.kind, failed.message, place], "seconds": time.perf_counter() - started}
        rewards, failures = [], []
        for index, value in enumerate(values):
            try:
                rewards.append(number(value))
            except Failed as failed:
                rewards.append(None)
                failures.append([index, failed.kind, failed.message, self._defined])
        extra = log.extra()
        return {
            "rewards": rewards,
            "failures": failures,
            "extra": extra,
            "metrics": log.metrics,
            "seconds": seconds,
        }

    def _call(self, columns: dict[str, bytes], log: Log) -> Any:
        try:
            arguments = {name: _unpickled(name, data) for name, data in (columns | self._whole).items()}
            arguments |= {"log_extra": log.log_extra, "log_metric": log.log_metric} | pickle.loads(self._kwargs)
            return self._result(self._function, arguments)
        except Failed:
            raise
        except SystemExit as error:
            raise Failed("crash", f"sys.exit({error.code!r})", self._place(error.__traceback__)) from error
        except MemoryError as error:
            message = "MemoryError: more than its worker's memory_gb" + (f": {error}" if error.args else "")
            raise Failed("memory", message, self._place(error.__traceback__)) from error
        except BaseException as error:
            raise Failed("exception", described(error), self._place(error.__traceback__)) from error

    def _result(self, function: Callable, arguments: dict[str, Any]) -> Any:
        """What a function of the plugin gives, awaited where that is needed."""
        try:
            returned = function(**arguments)
        finally:
            self._settle()
        if not hasattr(returned, "__await__"):
            return returned
        if self._runner is None:
            import asyncio

            # One event loop for the worker's life: clients that a plugin keeps belong to the loop they were made in.
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(_awaited(returned))
        finally:
            self._settle()

    @property
    def _defined(self) -> str:
        return f"{os.path.basename(self._file)}:{self._line}" if self._file else ""

    def _place(self, trace: TracebackType | None) -> str:
        """`file.py:12`: the innermost line in the plugin's file; else the innermost that is not the pool's."""
        place = own = ""
        while trace:
            file = trace.tb_frame.f_code.co_filename
            found = f"{os.path.basename(file)}:{trace.tb_lineno}"
            if file == self._file:
                own = found
            elif not file.startswith(PACKAGE):
                place = found
            trace = trace.tb_next
        return own or place


class StartError(Exception):
    """The plugin's `_start` raised, or its function is none that a run can call."""


def check_callable(path: str, function: Any) -> None:
    """Refuses what a run cannot call, where the plugin's source alone does not tell (a dotted name, an assignment).

    Raises:
        StartError: it does not take whatever the trainer passes by name.
    """
    if not callable(function):
        raise StartError(f"{path} is of type {type(function).__name__}, not a function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # written in C, without a signature
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if by_position or not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        name = path.rpartition(":")[2].rpartition(".")[2]
        takes = f"takes {by_position[0]!r} by position only" if by_position else "takes no **kwargs"
        raise StartError(
            f"{path} {takes}: a reward function is called as f(completions=…, prompts=…, …); one that makes a reward "
            f"function belongs in a file with a line such as: my_reward = {name}(…), and path=that_file.py:my_reward"
        )


class Log:
    """What a plugin logs in one call, as TRL takes it.

    Args:
        count: completions of the call.
    """

    def __init__(self, count: int):
        self._count = count
        self._extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def log_extra(self, column: str, values: list) -> None:
        """One value a completion, for the table of completions."""
        if (name := self._name(column, self._extra)) is not None:
            self._extra.setdefault(name, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """A number, averaged over a logging step."""
        value = float(value)
        if (short := self._name(name, self.metrics)) is not None:
            self.metrics.setdefault(short, []).append(value)

    def _name(self, name: str, known: Mapping[str, Any]) -> str | None:
        """The name in bounds; None where there are too many."""
        name = one_line(str(name))[:MAX_NAME]
        if name in known or len(known) < MAX_NAMES:
            return name
        print(f"more than {MAX_NAMES} names are logged: {name!r} is left out", flush=True)
        return None

    def extra(self) -> dict[str, list[Any]]:
        """The columns that have one value a completion; the others cannot be told apart, and are left out."""
        for column, values in self._extra.items():
            if len(values) != self._count:
                problem = f"{len(values)} values for {self._count} completions are left out"
                print(f"log_extra({column!r}): {problem}", flush=True)
        return {
            column: [logged(value) for value in values]
            for column, values in self._extra.items()
            if len(values) == self._count
        }


async def _awaited(awaitable: Awaitable) -> Any:
    return await awaitable


def _unpickled(name: str, data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except MemoryError:
        raise
    except Exception as error:
        message = f"column {name!r} cannot be read in the worker: {described(error)}"
        raise Failed("unpicklable", message) from error


def _definition(function: Callable) -> tuple[str, int]:
    """File and first line of a function; "" where it is not written in Python."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else ("", 0)


def _start_message(path: str, error: BaseException) -> str:
    if isinstance(error, StartError):
        return f"cannot start: {error}"
    trace, place = error.__traceback__, ""
    while trace:
        file = trace.tb_frame.f_code.co_filename
        place = f" ({file}:{trace.tb_lineno})" if not file.startswith("<frozen") else place
        trace = trace.tb_next
    return f"{path} cannot be imported: {described(error)}{place}"
