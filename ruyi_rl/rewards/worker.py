"""One reward function in a process of its own, which is killed where it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import signal
import subprocess
import sys
import weakref
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_function
from ruyi_rl.rewards.results import RewardCounts, RewardError

_COMMAND = "from ruyi_rl.rewards.worker import serve; import sys; serve(int(sys.argv[1]))"
_START_SECONDS = 120


def load_reward(path: str, timeout: float = 10.0, **kwargs: Any) -> IsolatedReward:
    """A reward function, isolated and bounded in time.

    Args:
        path: a Python file (looked up from the working folder, then among the shipped plugins), `file.py:function`, or
            a dotted name.
        timeout: seconds that a call may take; see `IsolatedReward`.
        kwargs: passed to the function at every call.

    Raises:
        Refusal: where the path leads to no function.
        RewardError: where the plugin cannot be imported.
    """
    return IsolatedReward(path, timeout, kwargs)


class IsolatedReward:
    """Calls a reward function in a worker process; use it in a `with` block, or `close()` it.

    A call that is not answered within `timeout` seconds, or whose worker dies, is split in halves down to single
    samples: each sample gets the whole `timeout` for itself before it is given up as None. `counts` says how many were.
    """

    def __init__(self, path: str, timeout: float, kwargs: dict[str, Any]):
        if not timeout > 0:
            raise Refusal("timeout", f"{timeout} seconds", "a number above 0")
        check_function("path", path, kwargs)
        self.path, self.timeout, self.kwargs, self.counts = path, timeout, kwargs, RewardCounts()
        self._end: weakref.finalize | None = None
        self._pipe: Connection | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One finite float or None a completion. A column that is a list of one value a completion is split with them.

        Raises:
            RewardError: where the function raises or returns a wrong shape.
        """
        rewards: list[float | None] = [None] * len(completions)
        spans = [(0, len(completions))] if completions else []
        columns = {"completions": list(completions), **columns}
        while spans:
            start, end = spans.pop()
            part = {name: _cut(value, start, end, len(completions)) for name, value in columns.items()}
            kind, answer = self._ask(part)
            if kind == "rewards":
                rewards[start:end] = answer[0]
                self._count(answer[1])
            elif end - start == 1:
                self.counts.fail(kind)
            else:
                middle = (start + end) // 2
                spans += [(middle, end), (start, middle)]
        return rewards

    def close(self) -> None:
        """End the worker and everything it started."""
        if self._end is not None:
            self._end()
            self._pipe.close()
            self._end = self._pipe = None

    def _ask(self, part: dict[str, Any]) -> tuple[str, Any]:
        message = pickle.dumps(part)
        if self._end is None:
            self._start()
        try:
            self._pipe.send_bytes(message)
            if not self._pipe.poll(self.timeout):
                self.close()
                return "timeout", None
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            return "crash", None
        if kind == "error":
            raise RewardError(answer)
        return kind, answer

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        # Not multiprocessing's spawn: that would run the caller's script again. Prints go to our standard error.
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        # Also at the end of the interpreter, and where nobody closed it: a worker that hangs does not see our end.
        self._end = weakref.finalize(self, _kill, process)
        kind, answer = "error", f"{self.path}: the worker did not start"
        try:
            self._pipe.send((self.path, self.kwargs))
            if self._pipe.poll(_START_SECONDS):
                kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            pass
        if kind != "ready":
            self.close()
            raise RewardError(answer)

    def _count(self, counts: RewardCounts) -> None:
        self.counts.scored += counts.scored
        self.counts.abstained += counts.abstained
        for kind, completions in counts.failures.items():
            self.counts.fail(kind, completions)


def _kill(process: subprocess.Popen) -> None:
    # The worker leads a process group of its own, so that this reaches its children too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cut(value: Any, start: int, end: int, whole: int) -> Any:
    return value[start:end] if isinstance(value, (list, tuple)) and len(value) == whole else value


def serve(descriptor: int) -> None:
    """The worker's loop; ends when the parent's end of the pipe does."""
    from ruyi_rl.rewards.loading import reward_function

    pipe = Connection(descriptor)
    path, kwargs = pipe.recv()
    try:
        function = reward_function(Path(path).stem if ".py" in path else path.rpartition(".")[2], path, kwargs)
    except Exception as error:  # noqa: BLE001  a stranger's module may raise anything while it is imported
        pipe.send(("error", f"{path} cannot be imported: {type(error).__name__}: {error}"))
        return
    pipe.send(("ready", None))
    while True:
        try:
            columns = pipe.recv()
        except EOFError:
            return
        function.counts = RewardCounts()
        try:
            rewards = function(**columns)
            rewards = asyncio.run(rewards) if inspect.isawaitable(rewards) else rewards
            pipe.send(("rewards", (rewards, function.counts)))
        except RewardError as error:
            pipe.send(("error", str(error)))
