"""Where the answers of an evaluation come from: a family's exits, or completions that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ruyi_rl.rollout.worker import Completion, Request, Rollout, Sampling, request_seeds
from ruyi_rl.training.options import EvaluationOptions


@dataclass(frozen=True)
class Draft:
    """A completion that is not judged yet."""

    text: str
    token_ids: list[int]
    finished: bool = True
    """Whether it ended by itself."""
    log_prob: float | None = None
    """Mean log-probability of its tokens, where it is known."""


class Answers(Protocol):
    """What the exits answer; every rank asks for the problems of its own, exits and kinds in the same order."""

    def prompt_tokens(self, problem: int) -> int: ...

    def drafts(self, exit: str, problems: Sequence[int], greedy: bool) -> list[list[Draft]]:
        """(problems,) the greedy answer alone, where there is one, or all samples."""
        ...


class FamilyAnswers:
    """Drawn by a rollout that has the family's weights.

    Args:
        tokenizer: renders and decodes; a chat template is needed for prompts of chat messages.
        rows: all problems; those that are asked for are looked up in it.
        options: `samples`, `temperature` and `max_new_tokens` are read.
        seed: with the exit's name, the prompt and the sample it decides a draw.
        template_kwargs: further arguments of the chat template.
        arrived: called with the number of completions that have come in, where the back end tells before its end.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: Sequence[Mapping[str, Any]],
        options: EvaluationOptions,
        rollout: Rollout,
        seed: int,
        template_kwargs: Mapping[str, Any] | None = None,
        arrived: Callable[[int], None] | None = None,
    ):
        if options.max_new_tokens is None:
            raise ValueError("evaluation.max_new_tokens is not set")
        self.tokenizer, self.rows, self.options, self.rollout, self.seed = tokenizer, rows, options, rollout, seed
        self.template_kwargs, self.arrived = template_kwargs, arrived
        self._prompts: dict[int, list[int]] = {}

    def prompt_tokens(self, problem: int) -> int:
        return len(self._ids(problem))

    def drafts(self, exit: str, problems: Sequence[int], greedy: bool) -> list[list[Draft]]:
        """A rank without a problem asks too: the back end may be one for all ranks."""
        each = 1 if greedy else self.options.samples
        prompts = [self._ids(problem) for problem in problems for _ in range(each)]
        if greedy:
            requests = [Request(exit, ids) for ids in prompts]
        else:
            seeds = request_seeds(self.seed, ("evaluation",), [exit] * len(prompts), prompts)
            requests = [Request(exit, ids, drawn_by) for ids, drawn_by in zip(prompts, seeds)]
        temperature = 0.0 if greedy else self.options.temperature
        sampling = Sampling(self.options.max_new_tokens, temperature=temperature)
        told = {} if self.arrived is None else {"arrived": lambda places, _: self.arrived(len(places))}
        drafts = self._decoded(self.rollout.generate(requests, sampling, **told))
        return [drafts[first : first + each] for first in range(0, len(drafts), each)]

    def _ids(self, problem: int) -> list[int]:
        if problem not in self._prompts:
            prompt = self.rows[problem]["prompt"]
            self._prompts[problem] = prompt_token_ids(self.tokenizer, prompt, self.template_kwargs)
        return self._prompts[problem]

    def _decoded(self, completions: Sequence[Completion]) -> list[Draft]:
        ids = [completion.token_ids for completion in completions]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
        return [
            Draft(text, completion.token_ids, completion.finished, mean_log_prob(completion))
            for text, completion in zip(texts, completions, strict=True)
        ]


class GivenAnswers:
    """Completions that are given.

    Args:
        tokenizer: counts their tokens; its encoding goes to the judge as their ids.
        rows: all problems.
        given: exit -> problem -> its completions; a greedy answer stands under `greedy`.
    """

    def __init__(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]], given: Mapping[str, Mapping[int, Given]]):
        self.tokenizer, self.rows, self.given = tokenizer, rows, given

    def prompt_tokens(self, problem: int) -> int:
        prompt = self.rows[problem]["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        return len(self.tokenizer(text=text)["input_ids"])

    def drafts(self, exit: str, problems: Sequence[int], greedy: bool) -> list[list[Draft]]:
        texts = [
            self.given[exit][problem].greedy if greedy else self.given[exit][problem].samples for problem in problems
        ]
        return [[Draft(text, list(self.tokenizer(text=text)["input_ids"])) for text in each] for each in texts]


@dataclass
class Given:
    """The completions of one problem at one exit."""

    samples: list[str]
    greedy: list[str]
    """One, or none."""


def mean_log_prob(completion: Completion) -> float | None:
    """None where the back end reports none."""
    if not completion.log_probs:
        return None
    return sum(completion.log_probs) / len(completion.log_probs)


def prompt_token_ids(tokenizer: Any, prompt: Any, template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt (text, or chat messages with the assistant's turn opened) as TRL makes them."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        conversation=prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(template_kwargs or {})
    )
    return list(rendered["input_ids"])
