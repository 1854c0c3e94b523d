"""Requests on their way to the servers: which go together, who has them, and what came back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.rollout.worker import Arrived, Completion, Request, Sampling

LARGEST_LOG_PROB = 1e-3
"""A log-probability may be this far above 0 by rounding."""


class Rubbish(ValueError):
    """An answer that no healthy server gives; the message says what is wrong with it."""


@dataclass(frozen=True)
class Group:
    """Requests of one prompt and exit with consecutive seeds: one HTTP request with `n` samples."""

    exit: str
    prompt_ids: tuple[int, ...]
    seed: int
    """Of the first sample; sample i is drawn with `seed + i`."""
    positions: tuple[int, ...]
    """Where the samples stand among the requests."""


def grouped(requests: Sequence[Request], sampling: Sampling, limit: int) -> list[Group]:
    """Runs of requests that one HTTP request can serve.

    Args:
        limit: most samples of a group.
    """
    if sampling.temperature == 0:
        limit = 1  # vLLM does not take several samples of a greedy request
    groups: list[Group] = []
    for position, request in enumerate(requests):
        last = groups[-1] if groups else None
        prompt = tuple(request.prompt_ids)
        if (
            last is not None
            and len(last.positions) < limit
            and (last.exit, last.prompt_ids) == (request.exit, prompt)
            and last.seed + len(last.positions) == request.seed
        ):
            groups[-1] = Group(last.exit, prompt, last.seed, (*last.positions, position))
        else:
            groups.append(Group(request.exit, prompt, request.seed, (position,)))
    return groups


class ExitWork:
    """The groups of one exit: those that wait for a worker, and the completions of those that are answered.

    Args:
        arrived: called with each group's positions and completions as it is answered.
    """

    def __init__(self, groups: Sequence[Group], arrived: Arrived | None = None):
        self.groups, self.arrived = groups, arrived
        self.answers: dict[int, Completion] = {}
        """Position of a request -> its completion."""
        self.seconds = 0.0
        """Wall time until the last answer."""
        self.waiting: asyncio.Queue[Group] = asyncio.Queue()
        self.finished = asyncio.Event()

    def begin(self) -> None:
        """Before the workers are asked, in their event loop: all that is not answered waits."""
        self.waiting, self.finished = asyncio.Queue(), asyncio.Event()
        for group in self.groups:
            if group.positions[0] not in self.answers:
                self.waiting.put_nowait(group)

    @property
    def done(self) -> bool:
        return len(self.answers) == sum(len(group.positions) for group in self.groups)

    @property
    def tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.answers.values())

    def slots(self, workers: int, sequences: int) -> int:
        """Groups that one of `workers` workers has at a time: its even share, but no more than its engine works on."""
        share = math.ceil(len(self.groups) / workers)
        largest = max(len(group.positions) for group in self.groups)
        return max(1, min(share, math.ceil(sequences / largest)))

    def answer(self, group: Group, completions: Sequence[Completion]) -> None:
        """Takes a group's completions; each group is answered once."""
        if group.positions[0] in self.answers:
            raise AssertionError(f"request {group.positions[0]} was answered twice")
        self.answers.update(zip(group.positions, completions, strict=True))
        if self.arrived is not None:
            self.arrived(group.positions, completions)
        if self.done:
            self.finished.set()


def read_answer(
    body: Any, samples: int, sampling: Sampling, vocabulary: int, end_token_ids: Collection[int]
) -> list[Completion]:
    """The completions in an answer of `/v1/completions`, in the order of their seeds.

    Args:
        body: the answer, as JSON gives it.
        samples: how many were asked for.
        vocabulary: token ids are below this.

    Raises:
        Rubbish: it is no answer to what was asked.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise Rubbish("an answer without choices")
    if len(choices) != samples:
        raise Rubbish(f"{len(choices)} samples instead of {samples}")
    if [choice.get("index") for choice in choices] != list(range(samples)):
        raise Rubbish(f"samples numbered {[choice.get('index') for choice in choices]}")
    return [read_choice(choice, sampling, vocabulary, end_token_ids) for choice in choices]


def read_choice(
    choice: Mapping[str, Any], sampling: Sampling, vocabulary: int, end_token_ids: Collection[int]
) -> Completion:
    """One checked completion.

    Raises:
        Rubbish: it is none.
    """
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list) or not tokens:
        raise Rubbish(f"token ids {tokens!r}")
    strange = [token for token in tokens if type(token) is not int or not 0 <= token < vocabulary]
    if strange:
        raise Rubbish(f"token id {strange[0]!r}, and the vocabulary has {vocabulary}")
    if len(tokens) > sampling.max_new_tokens:
        raise Rubbish(f"{len(tokens)} tokens, and at most {sampling.max_new_tokens} were asked for")
    reported = choice.get("logprobs")
    log_probs = reported.get("token_logprobs") if isinstance(reported, Mapping) else None
    if not isinstance(log_probs, list) or len(log_probs) != len(tokens):
        raise Rubbish(f"{len(log_probs) if isinstance(log_probs, list) else 'no'} log-probs for {len(tokens)} tokens")
    for value in log_probs:
        if type(value) not in (float, int) or not math.isfinite(value) or value > LARGEST_LOG_PROB:
            raise Rubbish(f"the log-prob {value!r}")
    finished = choice.get("finish_reason") == "stop"
    if not finished and (choice.get("finish_reason") != "length" or len(tokens) < sampling.max_new_tokens):
        raise Rubbish(f"a sample of {len(tokens)} tokens that ended with {choice.get('finish_reason')!r}")
    if finished != (tokens[-1] in end_token_ids) or any(token in end_token_ids for token in tokens[:-1]):
        raise Rubbish(f"a sample that {'ended' if finished else 'did not end'} at the tokens …{tokens[-4:]}")
    return Completion(tokens, finished, [float(value) for value in log_probs])
