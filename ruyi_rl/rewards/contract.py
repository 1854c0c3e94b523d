"""What every reward function must keep, tried on samples: each check is a function of a pool's answers.

A function is called by TRL's signature, on any part of a batch, in any of several processes, in any order. So its
rewards may depend on nothing but the completion and its row (or its group, or its batch, where `scope` says so).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ruyi_rl.rewards.samples import Samples

if TYPE_CHECKING:
    from ruyi_rl.rewards.pool import RewardFailure, Scores

Score = Callable[..., "Scores"]
"""`RewardPool.score`: completions, columns and groups in, `Scores` out."""

ALONE = 12
"""Most samples, or groups, that are scored one by one."""
CLOSE = 1e-6
"""Relative difference of two rewards that still counts as rounding, where a batch is cut otherwise."""
REMEDIES = {
    "exception": "mend that line, or return None where a completion cannot be scored",
    "timeout": "a faster function, or a higher timeout: {key}.timeout",
    "crash": "its worker process died: look for os._exit, native code, or threads that it leaves",
    "memory": "hold less, or raise {key}.memory_gb",
    "nan": "return a finite number, or None for no opinion",
    "infinite": "return a number of at most 1e9 in size, or None for no opinion",
    "wrong_length": "return a list with one reward a completion, in their order",
    "wrong_type": "return a list of numbers and None",
    "unpicklable": "columns of plain values: numbers, texts, lists, dicts",
}
"""Kind of failure -> what to do."""
_BRACES = 5_000

ODD = {
    "empty": "",
    "blank": " \n\t ",
    "NUL": "the answer is \0",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x1b[2J",
    "half a surrogate pair": "the answer is \ud83d",
    "100,000 words": "word " * 100_000,
    "a number of 20,000 digits": "9" * 20_000,
    "5,000 braces deep": "\\boxed" + "{" * _BRACES + "1" + "}" * _BRACES,
    "braces that never close": "\\boxed{" * _BRACES,
    "tags that never close": "<think>" * _BRACES + "<answer>",
    "a program that does not end its block": "```python\ndef f(",
    "Chinese": "答案是：\\boxed{五}，即５。",
    "right to left": "الجواب هو ٧",
    "marks and joiners": "e\u0301\u200d\ufeff👩\u200d👩\u200d👧 Z\u0351\u036b\u0343",
    "format fields": "{0.__class__} %s %n ${x} \\N{DIGIT ONE} $$",
}
"""Completions as no one expects them -> their texts. Models write such; half a surrogate pair comes of bad decoding."""


@dataclass(frozen=True)
class Verdict:
    """What came of one check."""

    check: str
    outcome: Literal["holds", "broken", "note"]
    """`note`: worth knowing, but no run fails of it."""
    problem: str = ""
    remedy: str = ""


def check_runs(scores: Scores, samples: Samples, key: str) -> list[Verdict]:
    """Whether every sample got an answer: no exception, time-out, crash, wrong length or type.

    Args:
        key: config key of the function.
    """
    return _failures("every sample is scored", scores, [f"sample {i + 1}" for i in range(len(samples))], key, samples)


def check_together(scores: Scores, samples: Samples, key: str) -> list[Verdict]:
    """Whether one call takes all samples that were scored before, in calls of any size."""
    return _failures("all in one call", scores, [f"sample {i + 1}" for i in range(len(samples))], key, samples)


def check_odd(scores: Scores, names: Sequence[str], samples: Samples, key: str) -> list[Verdict]:
    """Whether completions of `ODD` get an answer too; `names`: what they are called."""
    return _failures("odd completions", scores, names, key, samples)


def check_same_again(first: Scores, again: Scores) -> list[Verdict]:
    """Whether the same call gives the same rewards in the same process."""
    return _equal(
        "the same again",
        *(first.rewards, again.rewards, "the same call gave another reward"),
        "draw no random numbers, read no clock, keep nothing from call to call",
    )


def check_other_worker(here: Scores, elsewhere: Scores) -> list[Verdict]:
    """Whether the same call gives the same rewards in another process, in which hash() of a text is another."""
    return _equal(
        "another worker",
        *(here.rewards, elsewhere.rewards, "another worker process gave another reward"),
        "sort what comes from a set, use no hash() of texts, count nothing from call to call",
    )


def shuffled(count: int) -> list[int]:
    """A fixed order of so many samples that is not the given one."""
    order = list(range(count))
    random.Random(count).shuffle(order)
    return order if order != sorted(order) else order[::-1]


def check_order(given: Scores, permuted: Scores, order: Sequence[int]) -> list[Verdict]:
    """Whether each completion has the same reward wherever it stands in the call.

    Args:
        order: the place in the first call of each completion of the second.
    """
    moved: list[float | None] = [None] * len(order)
    for place, reward in zip(order, permuted.rewards, strict=True):
        moved[place] = reward
    return _equal(
        "order",
        *(given.rewards, moved, "in another order it gave another reward"),
        "give the rewards in the order of the completions, each from its own row",
        CLOSE,
    )


def check_parts(together: Sequence[float | None], apart: Sequence[float | None], scope: str, key: str) -> list[Verdict]:
    """Whether a sample (`scope=group`: a group) gets the same reward by itself as among others.

    Args:
        together: rewards of one call.
        apart: the same, each sample or group in a call of its own.
    """
    unit = "group" if scope == "group" else "sample"
    wider = "batch" if scope == "group" else "group (or batch)"
    return _equal(
        "by itself",
        *(together, apart, f"by itself a {unit} got another reward"),
        f"its rewards compare completions: {key}.scope={wider}; `prompts` and `exit` tell the groups of a call apart",
        CLOSE,
    )


def check_forms(as_messages: Scores, as_text: Scores, samples: Samples, key: str) -> list[Verdict]:
    """Whether texts and chat messages score alike. A run's prompts are chats, so that only messages must work."""
    names = [f"sample {i + 1}" for i in range(len(samples))]
    plain = _failures("plain texts", as_text, names, key, samples)
    remedy = "ruyi_rl.rewards.completions.completion_text reads both, should the function be used with plain prompts"
    if plain[0].outcome == "broken":
        return [Verdict(verdict.check, "note", verdict.problem, remedy) for verdict in plain]
    found = _equal(
        "plain texts", as_messages.rewards, as_text.rewards, "a plain text got another reward", remedy, CLOSE
    )
    return [Verdict(v.check, "note" if v.outcome == "broken" else v.outcome, v.problem, v.remedy) for v in found]


def check_time(seconds: Sequence[float], timeout: float, key: str) -> list[Verdict]:
    """Whether the slowest sample by itself keeps well away from its timeout."""
    slowest = max(seconds, default=0.0)
    if slowest > timeout / 2:
        problem = f"a sample took {slowest:.2g} s of its {timeout:g} s"
        return [Verdict("time", "note", problem, f"on a busy machine it will time out: raise {key}.timeout")]
    return [Verdict("time", "holds")]


def check_memory(gigabytes: float, limit: float, key: str) -> list[Verdict]:
    """Whether a worker keeps well away from its memory limit, in GiB."""
    if gigabytes > limit / 2:
        problem = f"a worker holds {gigabytes:.2g} GiB of its {limit:g}"
        return [Verdict("memory", "note", problem, f"longer completions will need more: raise {key}.memory_gb")]
    return [Verdict("memory", "holds")]


def check_spread(rewards: Sequence[float | None], alone: bool) -> list[Verdict]:
    """Whether the rewards tell completions apart, and how many have none; `alone`: no other function scores them."""
    given = [reward for reward in rewards if reward is not None]
    none = len(rewards) - len(given)
    if not given:
        problem = "no sample got a reward: None for all"
        return [Verdict("tells apart", "broken" if alone else "note", problem, "data that it has an opinion on")]
    if len(set(given)) == 1 and len(given) > 1:
        problem = f"all {len(given)} got {given[0]:g}: equal rewards teach nothing"
        return [Verdict("tells apart", "note", problem, "look at the table of samples, or give other completions")]
    if none:
        problem = f"{none} of {len(rewards)} got None, and would be left out of the training"
        return [Verdict("tells apart", "note", problem, "fine where the function has no opinion on them")]
    return [Verdict("tells apart", "holds")]


def _failures(check: str, scores: Scores, names: Sequence[str], key: str, samples: Samples) -> list[Verdict]:
    """One verdict for each kind of failure, with its first sample."""
    kinds: dict[str, list[RewardFailure]] = {}
    for failure in scores.failures:
        kinds.setdefault(failure.kind, []).append(failure)
    found = []
    for kind, failures in kinds.items():
        first = failures[0]
        which = ", ".join(dict.fromkeys(names[failure.index] for failure in failures[:3]))
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        place = f" at {first.place}" if first.place else ""
        problem = f"{kind.replace('_', ' ')}{place}: {first.message} ({which}{more}, of {len(scores.rewards)})"
        found.append(Verdict(check, "broken", problem, _remedy(first, key, samples)))
    return found or [Verdict(check, "holds")]


def _remedy(failure: RewardFailure, key: str, samples: Samples) -> str:
    if "required" in failure.message and "argument" in failure.message:
        return f"name a column of the data ({', '.join(sorted(samples.columns))}) or map one: data.fields"
    return REMEDIES.get(failure.kind, "").format(key=key)


def _equal(
    check: str, ours: Sequence[Any], theirs: Sequence[Any], problem: str, remedy: str, rounding: float = 0.0
) -> list[Verdict]:
    differ = [place for place, pair in enumerate(zip(ours, theirs, strict=True)) if not _same(*pair, rounding)]
    if not differ:
        return [Verdict(check, "holds")]
    first = differ[0]
    shown = f"{_number(ours[first])}, then {_number(theirs[first])}"
    return [Verdict(check, "broken", f"{problem} ({len(differ)} of {len(ours)}: {shown})", remedy)]


def _same(one: float | None, other: float | None, rounding: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=rounding, abs_tol=rounding)


def _number(value: float | None) -> str:
    return "None" if value is None else f"{value:.6g}"
