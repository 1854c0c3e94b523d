"""Held-out pass rates per exit: sampled and greedy, judged by the reward's own judge."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.rollout.worker import Completion, Request, Rollout, Sampling, request_seeds
from ruyi_rl.training.options import EvaluationOptions


@dataclass(frozen=True)
class Judge:
    """Decides whether a completion solves its problem."""

    function: Callable[..., list[float | None] | Awaitable[list[float | None]]]
    """A reward function of TRL's signature, plain or async."""
    pass_at: float = 1.0
    """Reward from which a completion counts as solved."""
    settle: Callable[[], None] = lambda: None
    """Called by all ranks after each exit: where they agree on what the function could not judge."""


@dataclass(frozen=True)
class ExitScore:
    """What one exit reached on the held-out problems."""

    pass_rate: float
    """Mean over problems of the share of samples that solve them; NaN where nothing could be judged."""
    standard_error: float
    """Of `pass_rate`, over problems."""
    greedy: float
    """Share of problems that greedy decoding solves."""
    mean_tokens: float
    """Tokens of a sampled completion, its end token included."""
    truncated: float
    """Share of sampled completions that the token limit ended."""
    failures: int
    """Completions that the judge could not judge; they are left out."""
    seconds: float
    """Wall time of this exit on this rank."""


@dataclass(frozen=True)
class _Answered:
    """Verdicts on one problem: True, False, or None where the judge failed."""

    samples: list[bool | None]
    greedy: bool | None
    tokens: int
    truncated: int


def evaluate_family(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    judge: Judge,
    exits: Sequence[str],
    options: EvaluationOptions,
    rollout: Rollout,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] = lambda exit, done, total: None,
) -> dict[str, ExitScore]:
    """Measure every exit on the same problems; ranks share the problems out and all return the whole result.

    Args:
        tokenizer: renders and decodes; a chat template is needed for prompts of chat messages.
        rows: held-out rows with `prompt` and whatever the judge reads; at most `options.problems`, drawn by `seed`.
        judge: says which completions solve their problem.
        exits: names, in any order: a draw depends on the seed, the exit's name, the prompt and the sample alone.
        options: `max_new_tokens` must be set.
        rollout: generates with the family under test.
        template_kwargs: further arguments of the chat template.
        progress: called after every pass of an exit with its name, passes done and passes in all.
    """
    if options.max_new_tokens is None:
        raise ValueError("evaluation.max_new_tokens is not set")
    problems = chosen_problems(rows, options.problems, seed)[ranks.rank() :: ranks.world_size()]
    prompt_ids = [prompt_token_ids(tokenizer, row["prompt"], template_kwargs) for row in problems]
    scores = {}
    total, done = 2 * len(exits), 0
    for exit in exits:
        start = time.monotonic()
        repeated = [ids for ids in prompt_ids for _ in range(options.samples)]
        seeds = request_seeds(seed, ("evaluation",), [exit] * len(repeated), repeated)
        requests = [Request(exit, ids, drawn_by) for ids, drawn_by in zip(repeated, seeds)]
        # A rank without a problem asks too: the back end may be one for all ranks.
        completions = rollout.generate(requests, Sampling(options.max_new_tokens, temperature=options.temperature))
        asked = [row for row in problems for _ in range(options.samples)]
        verdicts = judged(judge, tokenizer, exit, asked, completions)
        done += 1
        progress(exit, done, total)
        requests = [Request(exit, ids) for ids in prompt_ids]
        greedy = rollout.generate(requests, Sampling(options.max_new_tokens, temperature=0.0))
        greedy_verdicts = judged(judge, tokenizer, exit, problems, greedy)
        done += 1
        progress(exit, done, total)
        answered = []
        for index, right in enumerate(greedy_verdicts):
            part = slice(index * options.samples, (index + 1) * options.samples)
            answered.append(
                _Answered(
                    verdicts[part],
                    right,
                    sum(len(completion.token_ids) for completion in completions[part]),
                    sum(not completion.finished for completion in completions[part]),
                )
            )
        everyones = [problem for share in ranks.gathered(answered) for problem in share]
        judge.settle()
        scores[exit] = exit_score(everyones, options.samples, time.monotonic() - start)
    return scores


def exit_score(problems: Sequence[_Answered], samples: int, seconds: float) -> ExitScore:
    """The score of one exit from the verdicts on its problems, `samples` to each."""
    rates = []
    for problem in problems:
        verdicts = [verdict for verdict in problem.samples if verdict is not None]
        if verdicts:
            rates.append(sum(verdicts) / len(verdicts))
    greedy = [problem.greedy for problem in problems if problem.greedy is not None]
    completions = max(len(problems) * samples, 1)
    failures = sum(problem.samples.count(None) + (problem.greedy is None) for problem in problems)
    return ExitScore(
        pass_rate=statistics.fmean(rates) if rates else math.nan,
        standard_error=statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan,
        greedy=statistics.fmean(greedy) if greedy else math.nan,
        mean_tokens=sum(problem.tokens for problem in problems) / completions,
        truncated=sum(problem.truncated for problem in problems) / completions,
        failures=failures,
        seconds=seconds,
    )


def chosen_problems(rows: Sequence[Mapping[str, Any]], problems: int, seed: int) -> list[Mapping[str, Any]]:
    """At most `problems` rows, drawn by `seed` without replacement, in their order: a split may be sorted by level."""
    indices = sorted(random.Random(seed).sample(range(len(rows)), min(problems, len(rows))))
    return [rows[index] for index in indices]


def prompt_token_ids(tokenizer: Any, prompt: Any, template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt (text, or chat messages with the assistant's turn opened) as TRL makes them."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        conversation=prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(template_kwargs or {})
    )
    return list(rendered["input_ids"])


def judged(
    judge: Judge, tokenizer: Any, exit: str, rows: Sequence[Mapping[str, Any]], completions: Sequence[Completion]
) -> list[bool | None]:
    """One verdict a completion; None where the judge gave none. The judge sees what the trainer would show it."""
    if not rows:
        return []
    texts = tokenizer.batch_decode([completion.token_ids for completion in completions], skip_special_tokens=True)
    chats = [
        text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, texts)
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")}
    rewards = judge.function(
        prompts=[row["prompt"] for row in rows],
        completions=chats,
        completion_ids=[completion.token_ids for completion in completions],
        **{**columns, "exit": [exit] * len(rows)},
        trainer_state=None,
        log_extra=_unlogged,
        log_metric=_unlogged,
    )
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(_result(rewards))
    return [None if reward is None or math.isnan(reward) else float(reward) >= judge.pass_at for reward in rewards]


def _unlogged(name: str, values: Any) -> None:
    """Stands in for the trainer's loggers."""


async def _result(awaited: Awaitable[Any]) -> Any:
    return await awaited
