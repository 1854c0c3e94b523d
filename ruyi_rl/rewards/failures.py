"""What becomes of completions that a reward function failed on: counted, kept, and at some point too many."""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.failure import StageFailed
from ruyi_rl.redaction import Redaction
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.scored import Scored, State
from ruyi_rl.run_folder import write_text

FILE = "reward_failures.jsonl"
"""Name of the file in a stage's folder."""
KEPT = 8
"""Samples of a function and kind that are kept of one batch and rank."""
LARGEST_FILE = 64 * 2**20
"""Bytes of samples; a file that has reached them gets counts alone."""
WINDOW, ENOUGH = 512, 64
"""`max_failure_share` is of a function's last WINDOW samples, once it has seen ENOUGH."""
SHOWN = 160
"""Characters of a text in a message."""

Counts = dict[str, dict[str, int]]
"""Function -> kind -> completions."""


@dataclass(frozen=True)
class FailedSample:
    """One completion and the function that failed on it."""

    function: str
    kind: str
    message: str
    place: str
    exit: str
    prompt: Any
    completion: Any


@dataclass(frozen=True)
class Share:
    """What one rank knows of a batch; picklable."""

    outcomes: Mapping[str, Sequence[tuple[str, str | None]]]
    """Function -> (exit, kind of failure or None) of every completion that it was asked for."""
    samples: Sequence[FailedSample] = ()
    """At most KEPT of a function and kind."""
    problem: str | None = None
    """Why this rank has no rewards at all."""


def share_of(scored: Scored, exits: Sequence[str], prompts: Sequence[Any], completions: Sequence[Any]) -> Share:
    """A rank's share of a scored batch.

    Args:
        exits, prompts, completions: (rows,).
    """
    kinds = {(failure.function, failure.index): failure.kind for failure in scored.failures}
    asked = (State.SCORED, State.ABSTAINED, State.FAILED)
    outcomes = {
        name: [
            (exits[row], kinds.get((name, row))) for row, states in enumerate(scored.states) if states[column] in asked
        ]
        for column, name in enumerate(scored.names)
    }
    samples, kept = [], Counter()
    for failure in scored.failures:
        kept[failure.function, failure.kind] += 1
        if kept[failure.function, failure.kind] <= KEPT:
            row = failure.index
            samples.append(
                FailedSample(
                    failure.function,
                    failure.kind,
                    failure.message,
                    failure.place,
                    exits[row],
                    prompts[row],
                    completions[row],
                )
            )
    return Share(outcomes, samples)


def counted(shares: Iterable[Share], exit: str | None = None) -> Counts:
    """How often each function failed in each way, at one exit or at all of them."""
    counts: Counts = {}
    for share in shares:
        for name, outcomes in share.outcomes.items():
            for kind, number in Counter(kind for at, kind in outcomes if kind and exit in (None, at)).items():
                kinds = counts.setdefault(name, {})
                kinds[kind] = kinds.get(kind, 0) + number
    return counts


class RewardFailures:
    """Keeps the failures of a stage, and ends it where they are too many.

    Args:
        options: the `reward` group.
        path: JSONL file, written by rank 0. One row a sample: `step`, `mode`, `function`, `kind`, `message`, `place`,
            `exit`, `prompt`, `completion`; after those of a batch one row with the exact `failures` (function -> kind
            -> number), how many samples were `kept`, and the `limit`. None: nothing is written.
        report: shows the summary before the stage ends (on every rank; it may print on rank 0 alone).
        block: of the configuration that the group stands in; "" for the root.
    """

    def __init__(
        self,
        options: RewardOptions,
        path: Path | None = None,
        report: Callable[[str], None] | None = None,
        block: str = "",
    ):
        self.options, self.path, self.report = options, path, report or (lambda text: print(text, file=sys.stderr))
        self._functions = f"{block}.reward.functions" if block else "reward.functions"
        self._redaction = Redaction.of({"reward": asdict(options)})
        self._recent = {name: deque(maxlen=WINDOW) for name in options.functions}
        self._examples: dict[tuple[str, str], FailedSample] = {}

    def take(self, shares: Sequence[Share], mode: str, step: int | None = None, occasion: str | None = None) -> None:
        """Takes a batch; every rank calls it with the same shares, and ends where the others end.

        Args:
            shares: of all ranks.
            mode: `train`, `eval` or `evaluation`.
            step: optimiser step.
            occasion: what an evaluation measured.

        Raises:
            StageFailed: rewards could not be computed at all, a function with `on_error=stop` failed, or one failed
                too often.
        """
        text = self._redaction.text  # a function's exception may tell the key that it was given
        samples = [replace(sample, message=text(sample.message)) for share in shares for sample in share.samples]
        place = {"step": step, "mode": mode} | ({"occasion": occasion} if occasion else {})
        if samples and self.path is not None and ranks.rank() == 0:
            self._write(place, samples, counted(shares))
        for sample in samples:
            self._examples[sample.function, sample.kind] = sample
        if problem := next((share.problem for share in shares if share.problem), None):
            raise StageFailed(f"no rewards: {text(problem)}")
        for sample in samples:
            if self.options.functions[sample.function].on_error == "stop":
                raise StageFailed(self._stopped(sample))
        for name, recent in self._recent.items():
            for share in shares:
                recent.extend(kind for _, kind in share.outcomes.get(name, ()))
            failed = len(recent) - recent.count(None)
            if len(recent) >= ENOUGH and failed > self.options.functions[name].max_failure_share * len(recent):
                raise StageFailed(self._too_many(name, failed))

    def forget(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Removes the rows of what will come again (rank 0)."""
        if self.path is not None and self.path.exists() and ranks.rank() == 0:
            kept = [row for row in read_rows(self.path) if not unwanted(row)]
            write_text(self.path, "".join(_line(row) for row in kept))

    def _write(self, place: Mapping[str, Any], samples: Sequence[FailedSample], counts: Counts) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept, of_kind = 0, Counter()
        # A completion may hold half a surrogate pair, which UTF-8 cannot.
        with open(self.path, "a", errors="replace") as file:
            for sample in samples:
                of_kind[sample.function, sample.kind] += 1
                if of_kind[sample.function, sample.kind] <= KEPT and file.tell() < LARGEST_FILE:
                    file.write(_line({**place, **asdict(sample)}))
                    kept += 1
            limit = f"{KEPT} samples of a function and kind in a batch, and {LARGEST_FILE >> 20} MiB in all"
            file.write(_line({**place, "failures": counts, "kept": kept, "limit": limit}))

    def _stopped(self, sample: FailedSample) -> str:
        self.report(
            f"{sample.function}: {sample.kind} at {sample.place or 'an unknown place'}: {sample.message}\n"
            f"  exit        {sample.exit}\n  prompt      {shown(sample.prompt)}\n"
            f"  completion  {shown(sample.completion)}"
        )
        return (
            f"reward function {sample.function}: {sample.place or sample.kind}: {sample.message} "
            f"({self._functions}.{sample.function}.on_error=stop; exit {sample.exit}, completion "
            f"{shown(sample.completion)}){self._where()}"
        )

    def _too_many(self, name: str, failed: int) -> str:
        recent, allowed = self._recent[name], self.options.functions[name].max_failure_share
        kinds = Counter(kind for kind in recent if kind is not None).most_common()
        lines = [f"{name} failed on {failed} of its last {len(recent)} completions:"]
        for kind, number in kinds:
            sample = self._examples[name, kind]
            lines.append(f"  {kind:<14}{number:>5}   e.g. {sample.place or 'no place'}: {sample.message}")
            lines.append(f"{'':24}exit {sample.exit}, completion {shown(sample.completion)}")
        self.report("\n".join(lines))
        summary = ", ".join(f"{number} {kind}" for kind, number in kinds)
        return (
            f"reward function {name} failed on {failed} of its last {len(recent)} completions ({summary}), more than "
            f"{self._functions}.{name}.max_failure_share={allowed:g} allows{self._where()}"
        )

    def _where(self) -> str:
        return f". The samples are in {self.path}" if self.path is not None else ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of failures, in order; none where there is no file. A line cut by a kill is left out."""
    rows = []
    if path.exists():
        with open(path) as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return rows


def failure_counts(path: Path, mode: str = "train") -> Counts:
    """The exact counts of a file of failures in one mode."""
    counts: Counts = {}
    for row in read_rows(path):
        if row["mode"] == mode:
            for name, kinds in row.get("failures", {}).items():
                total = counts.setdefault(name, {})
                for kind, number in kinds.items():
                    total[kind] = total.get(kind, 0) + number
    return counts


def shown(value: Any) -> str:
    """A prompt or completion in a message: its end where it is long, since an answer stands there."""
    text = value if isinstance(value, str) else value[-1].get("content") if value else ""
    text = repr(text)
    return text if len(text) <= SHOWN else "…" + text[-SHOWN:]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
