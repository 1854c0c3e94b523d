"""Rollouts on disk: what `grpo.rollout_only` writes and `grpo.replay` trains on."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruyi_rl import ranks
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.worker import Arrived, Completion, ExitStatistics, Request, RolloutFailed, Sampling, WorkerHealth

if TYPE_CHECKING:
    from ruyi_rl.family import Family

NEEDED = {"exit": str, "prompt_ids": list, "completion_ids": list, "finished": bool}
"""What a replayed row must hold, and as what; `log_probs` may be missing, whatever else it holds is not read."""


class RolloutFile:
    """Appends rollouts to a JSONL file, one completion a line.

    Each row holds `step`, `exit`, `prompt`, `prompt_ids`, `completion`, `completion_ids`, `finished`, `log_probs` (of
    the engine; null where it reports none), `rewards` (function -> score), `reward` (of all; null where the completion
    is left out) and `advantage`.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self.rows = 0

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with open(self.path, "a") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                self.rows += 1


class ReplayRollout:
    """Answers requests from a file of rollouts; the n-th request of a prompt at an exit gets its n-th completion.

    Args:
        path: JSONL rows as `RolloutFile` writes them.

    Raises:
        Refusal: no such file, or a row that is no rollout; names the line.
    """

    name = "replay"
    runs_family = False

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._waiting: dict[tuple[str, tuple[int, ...]], deque[Completion]] = defaultdict(deque)
        self._taken: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for row in read_rollouts(self.path):
            self._waiting[row["exit"], tuple(row["prompt_ids"])].append(
                Completion(row["completion_ids"], row["finished"], row.get("log_probs"))
            )

    def update_weights(self, family: Family) -> None:
        """What was drawn is drawn."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        completions = []
        # A prompt may be another rank's in the next epoch, so each rank counts what all take, in the file's order.
        asked = ranks.gathered([(request.exit, tuple(request.prompt_ids)) for request in requests])
        self._pass_over(asked[: ranks.rank()])
        for request in requests:
            waiting = self._waiting[request.exit, tuple(request.prompt_ids)]
            if not waiting:
                raise RolloutFailed(
                    f"{self.path} has no further completion at exit {request.exit!r} of the prompt that begins with "
                    f"token ids {list(request.prompt_ids[:12])}: replay with the data, seed, exits and batch sizes "
                    "that the rollouts were drawn with, and no more steps"
                )
            completions.append(waiting.popleft())
            self._taken[request.exit, tuple(request.prompt_ids)] += 1
        self._pass_over(asked[ranks.rank() + 1 :])
        return completions

    def _pass_over(self, asked: Sequence[Sequence[tuple[str, tuple[int, ...]]]]) -> None:
        for key in itertools.chain.from_iterable(asked):
            if waiting := self._waiting.get(key):
                waiting.popleft()
                self._taken[key] += 1

    def taken(self) -> list[int]:
        """How many completions of each prompt and exit have been given, in the file's order of them."""
        return [self._taken[key] for key in self._waiting]

    def skip(self, taken: Sequence[int]) -> None:
        """Goes on where `taken` was said, of the same file."""
        for (key, waiting), count in zip(self._waiting.items(), taken, strict=True):
            for _ in range(count - self._taken[key]):
                waiting.popleft()
            self._taken[key] = count

    def statistics(self) -> dict[str, ExitStatistics]:
        return {}

    def health(self) -> list[WorkerHealth]:
        exits = dict.fromkeys(exit for exit, _ in self._waiting)
        return [WorkerHealth(exit, "replay", alive=True, detail=str(self.path)) for exit in exits]

    def close(self) -> None:
        self._waiting.clear()


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of rollouts.

    Raises:
        Refusal: no such file, no rows, or a row that is no rollout; names the line.
    """
    if not path.is_file():
        raise Refusal("grpo.replay", f"no file {path}", "a JSONL file that grpo.rollout_only=true has written")
    rows = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise Refusal("grpo.replay", f"{path}, line {number} is no JSON: {error}") from None
            problem = row_problem(row)
            if problem:
                raise Refusal("grpo.replay", f"{path}, line {number}: {problem}", "a row of grpo.rollout_only=true")
            rows.append(row)
    if not rows:
        raise Refusal("grpo.replay", f"{path} is empty", "a JSONL file that grpo.rollout_only=true has written")
    return rows


def row_problem(row: Any) -> str | None:
    """Why a row is no rollout; None where it is one."""
    if not isinstance(row, dict):
        return "no object"
    for key, kind in NEEDED.items():
        if not isinstance(row.get(key), kind):
            return f"{key} is {row.get(key)!r}, not a {kind.__name__}"
    for key in ("prompt_ids", "completion_ids"):
        if not row[key] or not all(type(token) is int and token >= 0 for token in row[key]):
            return f"{key} holds no token ids"
    log_probs = row.get("log_probs")
    if log_probs is not None and len(log_probs) != len(row["completion_ids"]):
        return f"{len(log_probs)} log_probs for {len(row['completion_ids'])} tokens"
    return None
