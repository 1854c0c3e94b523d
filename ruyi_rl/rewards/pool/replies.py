"""What a worker answers, read wholly before the pool takes any of it in: a plugin can write to its worker's channel."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ruyi_rl.rewards.pool.scores import KINDS, RewardFailure
from ruyi_rl.rewards.pool.values import LARGEST, Failed


@dataclass(frozen=True)
class Answer:
    """What a worker gave for a chunk of completions."""

    rewards: list[float | None]
    """One a completion."""
    failures: list[RewardFailure]
    """Their `index`: the place in the chunk."""
    extra: dict[str, list[Any]]
    """Column -> one value a completion."""
    metrics: dict[str, list[float]]
    seconds: float
    """That the function took."""


def decoded(message: bytes) -> dict[str, Any]:
    """A reply's JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        reply = json.loads(message)
    except RecursionError as error:
        raise ValueError("a reply nested too deep") from error
    _require(isinstance(reply, dict), "no JSON object")
    return reply


def read_answer(reply: dict[str, Any], count: int) -> Answer | Failed:
    """The answer to a chunk of `count` completions; `Failed`: there is none for any of them.

    Raises:
        ValueError: it is no such answer.
    """
    if "failed" in reply:
        failure = reply["failed"]
        _require(_is_list(failure, 3), "failed")
        return Failed(*_problem(*failure))
    rewards, failures, seconds = (reply.get(name) for name in ("rewards", "failures", "seconds"))
    _require(_is_list(rewards, count) and all(map(_is_reward, rewards)), "rewards")
    _require(_is_list(failures), "failures")
    read = [_failure(failure, rewards) for failure in failures]
    _require(len({failure.index for failure in read}) == len(read), "two failures of one completion")
    extra, metrics = reply.get("extra"), reply.get("metrics")
    _require(isinstance(extra, dict) and all(_is_list(values, count) for values in extra.values()), "extra")
    _require(isinstance(metrics, dict) and all(map(_is_list, metrics.values())), "metrics")
    _require(all(type(value) is float for values in metrics.values() for value in values), "metrics")
    _require(type(seconds) is float and math.isfinite(seconds) and seconds >= 0, "seconds")
    return Answer(rewards, read, extra, metrics, seconds)


def _failure(failure: Any, rewards: list[float | None]) -> RewardFailure:
    _require(_is_list(failure, 4), "failures")
    index, *problem = failure
    _require(type(index) is int and 0 <= index < len(rewards) and rewards[index] is None, "failures")
    return RewardFailure(index, *_problem(*problem))


def _problem(kind: Any, message: Any, place: Any) -> tuple[str, str, str]:
    _require(kind in KINDS and isinstance(message, str) and isinstance(place, str), "a failure")
    return kind, message, place


def _is_reward(value: Any) -> bool:
    return value is None or type(value) is float and abs(value) <= LARGEST


def _is_list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list) and (length is None or len(value) == length)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"what a worker has sent is no reply: {what}")
