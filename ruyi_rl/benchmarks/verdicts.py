"""The judge's verdicts on the completions of a problem."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.benchmarks.answers import Draft


@dataclass(frozen=True)
class Judge:
    """Decides whether a completion solves its problem."""

    function: Callable[..., list[float | None] | Awaitable[list[float | None]]]
    """A reward function of TRL's signature, plain or async. A column that it logs by `log_extra` under `…/answer` is
    the answer that it has read from each completion."""
    pass_at: float = 1.0
    """Reward from which a completion counts as solved."""
    settle: Callable[[], None] = lambda: None
    """Called by all ranks after each exit: where they agree on what the function could not judge."""


@dataclass(frozen=True)
class Attempt:
    """One completion and the verdict on it."""

    text: str
    reward: float | None
    """None where the judge failed."""
    right: bool | None
    answer: str | None
    """The answer that the judge has read; "" where it found none, None where it does not tell."""
    tokens: int
    """Of the completion, its end token included."""
    finished: bool
    """Whether it ended by itself, rather than at the limit."""
    log_prob: float | None
    """Mean log-probability of its tokens."""


@dataclass(frozen=True)
class Answered:
    """One problem's attempts at one exit."""

    problem: int
    """Index of its row."""
    prompt_tokens: int
    samples: list[Attempt]
    greedy: Attempt | None

    @property
    def attempts(self) -> list[Attempt]:
        return [*self.samples, *([] if self.greedy is None else [self.greedy])]


def judged(
    judge: Judge, exit: str, rows: Sequence[Mapping[str, Any]], drafts: Sequence[Sequence[Draft]]
) -> list[list[Attempt]]:
    """The drafts of each row with their verdicts. The judge sees what the trainer would show it."""
    asked = [row for row, each in zip(rows, drafts, strict=True) for _ in each]
    flat = [draft for each in drafts for draft in each]
    rewards, answers = _rewards(judge, exit, asked, flat) if flat else ([], [])
    attempts = iter(
        Attempt(
            draft.text,
            reward,
            None if reward is None else reward >= judge.pass_at,
            answer,
            len(draft.token_ids),
            draft.finished,
            draft.log_prob,
        )
        for draft, reward, answer in zip(flat, rewards, answers, strict=True)
    )
    return [[next(attempts) for _ in each] for each in drafts]


def _rewards(
    judge: Judge, exit: str, rows: Sequence[Mapping[str, Any]], drafts: Sequence[Draft]
) -> tuple[list[float | None], list[str | None]]:
    """One reward and one answer a draft, None where there is none."""
    logged: dict[str, Sequence[Any]] = {}
    rewards = judge.function(
        prompts=[row["prompt"] for row in rows],
        completions=[
            draft.text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": draft.text}]
            for row, draft in zip(rows, drafts, strict=True)
        ],
        completion_ids=[draft.token_ids for draft in drafts],
        **{key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")},
        exit=[exit] * len(rows),
        trainer_state=None,
        log_extra=logged.__setitem__,
        log_metric=_unlogged,
    )
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(_result(rewards))
    columns = [values for name, values in logged.items() if name.endswith("/answer")]
    answers = [next((column[i] for column in columns if column[i] is not None), None) for i in range(len(drafts))]
    return [None if reward is None or math.isnan(reward) else float(reward) for reward in rewards], answers


def _unlogged(name: str, values: Any) -> None:
    """Stands in for the trainer's logger of metrics."""


async def _result(awaited: Awaitable[Any]) -> Any:
    return await awaited
