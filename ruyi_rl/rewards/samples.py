"""Completions to try a reward on: a file's, or the data's own, right and exchanged between rows. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.data.files import read_records
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rewards.completions import completion_text

REFERENCE, ANSWER, EXCHANGED, FILE = "reference", "answer", "exchanged", "file"
ORIGINS = {
    REFERENCE: "the row's own completion in the data, as right as the data is",
    ANSWER: "the row's own answer in a box: the data has no completions",
    EXCHANGED: "another row's completion, where the two rows' answers differ: made to be wrong",
    FILE: "from check_reward.completions",
}
"""Where a completion comes from -> what that means."""
_DRAWN = frozenset(
    ("step", "prompt", "prompt_ids", "completion", "sample", "tokens", "finished", "log_probs", "rewards")
)
"""What a file of completions holds besides columns of the data."""


@dataclass(frozen=True)
class Samples:
    """Completions with all that a reward function gets of them; lists of one value a completion."""

    completions: list[str]
    columns: dict[str, list[Any]]
    """What the functions get by keyword: `prompts`, `exit`, `completion_ids` and the data's columns."""
    origins: list[str]
    """Keys of `ORIGINS`."""

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def groups(self) -> list[str]:
        """What tells the groups apart: prompt and exit."""
        return [json.dumps(pair) for pair in zip(self.columns["prompts"], self.columns["exit"], strict=True)]

    def take(self, indices: Iterable[int]) -> Samples:
        """The samples at these places, in this order."""
        places = list(indices)
        columns = {name: [values[place] for place in places] for name, values in self.columns.items()}
        return Samples([self.completions[i] for i in places], columns, [self.origins[i] for i in places])

    def saying(self, completions: Sequence[str]) -> Samples:
        """The rows, from the first on and over again, with these completions."""
        rows = self.take(place % len(self) for place in range(len(completions)))
        ids = {"completion_ids": [_bytes(text) for text in completions]}
        return Samples(list(completions), rows.columns | ids, rows.origins)

    def messages(self) -> list[list[dict[str, str]]]:
        """The completions as chat messages, as the trainer gives them."""
        return [[{"role": "assistant", "content": text}] for text in self.completions]


def data_samples(
    questions: Sequence[Mapping[str, Any]], demonstrations: Sequence[Mapping[str, Any]], exit: str
) -> Samples:
    """Each row's own completion, then each row with another's.

    Args:
        questions: rows with `prompt` and the columns that a training gives to its rewards.
        demonstrations: the same rows with `completion`, or with `messages` that end with it; empty: the rows have none,
            and their `answer` is taken.
        exit: name of the exit that is said to have answered.

    Raises:
        Refusal: rows with neither completions nor answers.
    """
    if demonstrations:
        own = [_demonstrated(row) for row in demonstrations]
    elif questions and all(row.get("answer") is not None for row in questions):
        own = [f"\\boxed{{{row['answer']}}}" for row in questions]
    else:
        problem = "is not given, and the data has neither completions nor answers to score"
        raise Refusal("check_reward.completions", problem, "JSON lines, each with a completion")
    others = [_exchanged(questions, own, place) for place in range(len(own))]
    kept = [place for place, other in enumerate(others) if other is not None]
    rows = [*questions, *(questions[place] for place in kept)]
    origins = [REFERENCE if demonstrations else ANSWER] * len(own) + [EXCHANGED] * len(kept)
    texts = [*own, *(others[place] for place in kept)]
    return Samples(texts, _columns(rows, texts, [exit] * len(rows)), origins)


def file_samples(path: Path, count: int, questions: Sequence[Mapping[str, Any]], exit: str) -> Samples:
    """The first completions of a file; columns that a line lacks are those of the data's row with its prompt.

    Args:
        path: JSON lines with `completion`, text or chat messages, and perhaps `prompt`, `exit` and columns.
        count: most lines that are read.
        questions: the data's rows.
        exit: for lines that name none.

    Raises:
        Refusal: a line without a completion.
    """
    known = {prompt_key(row["prompt"]): row for row in questions}
    rows, texts, exits = [], [], []
    for place, line in _lines(path, count):
        try:
            texts.append(completion_text(line["completion"]))
        except (KeyError, TypeError, AttributeError):
            problem = f"{place} has no completion, but {', '.join(line) or 'nothing'}"
            raise Refusal("check_reward.completions", problem, '{"completion": a text or chat messages, …}') from None
        prompt = line.get("prompt", "")
        own = {name: value for name, value in line.items() if name not in _DRAWN}
        rows.append({**known.get(prompt_key(prompt), {}), **own, "prompt": prompt})
        exits.append(str(own.get("exit", exit)))
    return Samples(texts, _columns(rows, texts, exits), [FILE] * len(texts))


def require_columns(samples: Samples, needed: Mapping[str, Sequence[str]]) -> None:
    """Refuse samples without a column that a function needs; `needed`: function -> its columns.

    One that is there but always None is for another function to judge by, where there is such a function.
    """
    there = sorted(name for name, values in samples.columns.items() if any(value is not None for value in values))
    judged = any(set(columns) <= set(there) for columns in needed.values())
    for name, columns in needed.items():
        for column in columns:
            if column not in there and not (judged and column in samples.columns):
                problem = f"needs the column {column!r}, which no sample has"
                raise Refusal(f"reward.functions.{name}", problem, nearest(column, there))


def _columns(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], exits: list[str]) -> dict[str, list[Any]]:
    given = {"prompts": [row["prompt"] for row in rows], "exit": exits}
    given["completion_ids"] = [row.get("completion_ids") or _bytes(text) for row, text in zip(rows, texts, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", *given))
    return given | {name: [row.get(name) for row in rows] for name in names}


def _bytes(text: str) -> list[int]:
    """The text's tokens for the embedded tokenizer: one a byte. There is no other model here that would cut it."""
    return list(text.encode("utf-8", "surrogatepass"))


def _demonstrated(row: Mapping[str, Any]) -> str:
    return completion_text(row["completion"] if row.get("completion") else row["messages"])


def _exchanged(rows: Sequence[Mapping[str, Any]], own: Sequence[str], place: int) -> str | None:
    """The completion of the nearest row after this one whose answer is another; None where all are alike."""
    for step in range(1, len(own)):
        other = (place + step) % len(own)
        gold = [(rows[place].get(name), rows[other].get(name)) for name in ("answer", "tests")]
        unjudged = all(mine is None for mine, _ in gold)
        if own[other] != own[place] and (unjudged or any(mine != theirs for mine, theirs in gold)):
            return own[other]
    return None


def prompt_key(prompt: Any) -> str:
    """The user's last words: a chat may have been opened by a system message, or given as its text."""
    said = [message.get("content") for message in prompt if isinstance(message, dict)] if prompt else []
    return prompt if isinstance(prompt, str) else str(said[-1] if said else "")


def _lines(path: Path, count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        for number, record in enumerate(read_records(path)):
            if number == count:
                return
            yield record
    except Refusal as refusal:
        raise Refusal("check_reward.completions", refusal.problem, refusal.allowed) from None
