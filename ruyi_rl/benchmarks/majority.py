"""maj@k: the chance that the most frequent answer of k samples is right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ruyi_rl.rewards.mathematics.equality import Comparison, same_answer

LEAST = 3
"""The smallest k that is told: the vote of one sample, or of two with ties split, is right as often as a sample."""
INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Votes:
    """What the samples of one problem vote for."""

    right: int
    """Votes for the right answer."""
    wrong: tuple[int, ...]
    """Votes for each of the wrong answers."""
    silent: int
    """Samples without an answer, which do not vote."""

    @property
    def samples(self) -> int:
        return self.right + sum(self.wrong) + self.silent


def count_votes(answers: Sequence[str], right: Sequence[bool]) -> Votes:
    """Sorts the samples of one problem by their answer.

    What the judge takes for right is one answer: it equals the reference. Wrong ones are compared among themselves by
    the rules of `rewards/math_answer.py` up to its calls of sympy: text, numbers and structure, but no algebra.

    Args:
        answers: (samples,) the extracted answer, "" where there is none.
        right: (samples,) the judge's verdicts.
    """
    wrong: dict[str, int] = {}
    silent = 0
    for answer, is_right in zip(answers, right, strict=True):
        if is_right:
            continue
        if not answer:
            silent += 1
            continue
        known = answer if answer in wrong else next((other for other in wrong if alike(other, answer)), answer)
        wrong[known] = wrong.get(known, 0) + 1
    return Votes(sum(right), tuple(sorted(wrong.values())), silent)


def alike(one: str, other: str) -> bool:
    """Whether two answers are equal by their text, numbers and structure, either taken as the reference."""
    if INTEGER.fullmatch(one) and INTEGER.fullmatch(other):
        return int(one) == int(other)  # what most answers are, a thousand times faster
    # A deadline in the past: no answer of a model's reaches sympy here, where nothing could end it.
    return any(same_answer(*pair, Comparison(deadline=0.0)) for pair in ((one, other), (other, one)))


def majority_at_k(votes: Votes, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, elect the right answer.

    This is the mean over all sets of k samples, and so unbiased for the vote of k fresh samples, as pass@k is. Of t
    answers with equally many votes each is elected with chance 1/t. Where nobody votes, nothing is elected, and the
    vote is wrong. Source of the vote: Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning.

    Returns:
        The share in 0..1; NaN where there are fewer than k samples.
    """
    if votes.samples < k:
        return math.nan
    return _elected(votes.right, votes.wrong, votes.silent, k)


@lru_cache(maxsize=2**16)
def _elected(own: int, others: tuple[int, ...], silent: int, k: int) -> float:
    """The chance that the answer with `own` of the votes is elected, by counting sets of k samples.

    For each number of its votes in the set, the other answers that could draw level are taken in one by one: ways[t][r]
    counts the choices of r samples of theirs in which t of them draw level and none is ahead. Those with fewer votes
    are in nobody's way, as if they were silent.
    """
    elected = 0.0
    for mine in range(1, min(own, k) + 1):
        room = k - mine
        harmless = silent + sum(votes for votes in others if votes < mine)
        ways = [[math.comb(harmless, r) for r in range(room + 1)]]
        for votes in others:
            if votes >= mine:
                ways = _with_answer(ways, votes, mine, room)
        level = sum(tied[room] / (ties + 1) for ties, tied in enumerate(ways))
        elected += math.comb(own, mine) * level
    return elected / math.comb(own + sum(others) + silent, k)


def _with_answer(ways: list[list[int]], votes: int, most: int, room: int) -> list[list[int]]:
    """The counts of `_elected` with one more answer, which may get at most `most` of its `votes` into the set."""
    levels = min(len(ways), room // most)
    found = [[0] * (room + 1) for _ in range(levels + 1)]
    for ties, counts in enumerate(ways):
        for taken in range(min(votes, most) + 1):
            chosen, level = math.comb(votes, taken), ties + (taken == most)
            if level > levels:
                continue
            row = found[level]
            for r in range(ties * most, room + 1 - taken):
                row[r + taken] += counts[r] * chosen
    return found
