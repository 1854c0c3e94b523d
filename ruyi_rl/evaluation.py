"""Exits measured on problems: sampled and greedy answers, judged by the reward's own judge."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.benchmarks.answers import Answers, FamilyAnswers
from ruyi_rl.benchmarks.verdicts import Answered, Attempt, Judge, judged
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.training.options import EvaluationOptions

Progress = Callable[[str, int, int], None]
"""Called after every pass of an exit with its name, passes done and passes in all."""


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
    """Tokens of a sampled completion, its end token included; NaN where there is none."""
    truncated: float
    """Share of sampled completions that the token limit ended."""
    failures: int
    """Completions that the judge could not judge; they are left out."""
    seconds: float
    """Wall time of this exit on this rank."""


@dataclass(frozen=True)
class Measured:
    """One exit on all problems."""

    score: ExitScore
    problems: list[Answered]
    """In the order of their rows."""


def evaluate_family(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    judge: Judge,
    exits: Sequence[str],
    options: EvaluationOptions,
    rollout: Rollout,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    progress: Progress = lambda exit, done, total: None,
    texts: int | None = None,
) -> dict[str, Measured]:
    """Measure every exit of the family whose weights `rollout` has.

    Args:
        tokenizer: renders and decodes; a chat template is needed for prompts of chat messages.
        rows: held-out rows with `prompt` and whatever the judge reads; at most `options.problems`, drawn by `seed`.
        judge: says which completions solve their problem.
        exits: names, in any order: a draw depends on the seed, the exit's name, the prompt and the sample alone.
        options: `max_new_tokens` must be set.
        rollout: generates with the family under test.
        template_kwargs: further arguments of the chat template.
        texts: see `evaluate`.
    """
    answers = FamilyAnswers(tokenizer, rows, options, rollout, seed, template_kwargs)
    return evaluate(rows, chosen_problems(len(rows), options.problems, seed), answers, judge, exits, progress, texts)


def evaluate(
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[int],
    answers: Answers,
    judge: Judge,
    exits: Sequence[str],
    progress: Progress = lambda exit, done, total: None,
    texts: int | None = None,
) -> dict[str, Measured]:
    """Measure every exit on the same problems; ranks share the problems out and all return the whole result.

    Args:
        problems: indices of rows.
        texts: problems, from the first on, whose completions' texts are brought along; None: all.
    """
    mine = list(problems)[ranks.rank() :: ranks.world_size()]
    shown = set(list(problems)[:texts])
    measured = {}
    for number, exit in enumerate(exits):
        start = time.monotonic()
        found: dict[bool, list[list[Attempt]]] = {}
        for greedy in (False, True):
            drafts = answers.drafts(exit, mine, greedy)
            found[greedy] = judged(judge, exit, [rows[problem] for problem in mine], drafts)
            progress(exit, 2 * number + greedy + 1, 2 * len(exits))
        own = [
            Answered(problem, answers.prompt_tokens(problem), samples, greedy[0] if greedy else None)
            for problem, samples, greedy in zip(mine, found[False], found[True], strict=True)
        ]
        own = [each if each.problem in shown else _without_texts(each) for each in own]
        everyones = [each for share in ranks.gathered(own) for each in share]
        everyones.sort(key=lambda each: each.problem)
        judge.settle()
        measured[exit] = Measured(exit_score(everyones, time.monotonic() - start), everyones)
    return measured


def exit_score(problems: Sequence[Answered], seconds: float) -> ExitScore:
    """The score of one exit from the verdicts on its problems."""
    rates = []
    for problem in problems:
        verdicts = [sample.right for sample in problem.samples if sample.right is not None]
        if verdicts:
            rates.append(sum(verdicts) / len(verdicts))
    greedy = [each.greedy.right for each in problems if each.greedy is not None and each.greedy.right is not None]
    samples = [sample for problem in problems for sample in problem.samples]
    return ExitScore(
        pass_rate=statistics.fmean(rates) if rates else math.nan,
        standard_error=statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan,
        greedy=statistics.fmean(greedy) if greedy else math.nan,
        mean_tokens=statistics.fmean(sample.tokens for sample in samples) if samples else math.nan,
        truncated=statistics.fmean(not sample.finished for sample in samples) if samples else math.nan,
        failures=sum(attempt.right is None for problem in problems for attempt in problem.attempts),
        seconds=seconds,
    )


def chosen_problems(rows: int, problems: int, seed: int) -> list[int]:
    """At most `problems` of the rows, drawn by `seed` without replacement, in order: a split may be sorted by level."""
    return sorted(random.Random(seed).sample(range(rows), min(problems, rows)))


def _without_texts(answered: Answered) -> Answered:
    samples = [replace(sample, text="") for sample in answered.samples]
    return replace(answered, samples=samples, greedy=answered.greedy and replace(answered.greedy, text=""))
