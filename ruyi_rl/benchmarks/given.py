"""Completions that are given: those of the data itself, or a file's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruyi_rl.benchmarks.answers import Given
from ruyi_rl.benchmarks.completions import GREEDY
from ruyi_rl.benchmarks.options import REFERENCE
from ruyi_rl.benchmarks.split import held_out_split
from ruyi_rl.data.check import check_data
from ruyi_rl.data.embedded import SOURCES
from ruyi_rl.data.files import read_records
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.samples import prompt_key

KEY = "eval.completions"

ByExit = dict[str, dict[int, Given]]
"""Who has answered -> index of the problem's row -> the completions."""


def reference_completions(options: DataOptions, seed: int, rows: Sequence[Mapping[str, Any]]) -> ByExit:
    """The data's own completions; where it has none, each row's answer in a box.

    Args:
        options: of the data that the rows are from.
        rows: the problems.

    Raises:
        Refusal: the data has neither.
    """
    texts = _demonstrations(options, seed)
    found: dict[int, Given] = {}
    for index, row in enumerate(rows):
        own = texts.get(prompt_key(row["prompt"]))
        if own is None and row.get("answer") is not None:
            own = f"\\boxed{{{row['answer']}}}"
        if own is None:
            problem = f"{REFERENCE}, but {options.name} has neither completions nor answers"
            raise Refusal(KEY, problem, "a JSONL file, each line with a completion")
        found[index] = Given([own], [])
    return {REFERENCE: found}


def _demonstrations(options: DataOptions, seed: int) -> dict[str, str]:
    """Prompt -> completion, where the data has completions."""
    if options.source in SOURCES:
        return {}
    split = held_out_split(options)
    try:
        check_data(split, "sft")
    except Refusal:
        return {}
    rows = load_data(split, seed, "sft").train
    if "completion" not in rows.column_names:
        return {prompt_key(row["messages"][:-1]): completion_text(row["messages"]) for row in rows}
    return {prompt_key(row["prompt"]): completion_text(row["completion"]) for row in rows}


def file_completions(path: Path, problems: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, ByExit]:
    """Benchmark -> the completions that a file has for it.

    Args:
        path: a line a completion: `completion`, text or chat messages; `prompt`, whose last words tell the problem, or
            `problem`, the index of its row; perhaps `exit`, `benchmark` and `sample`, which is `greedy` for a greedy
            answer. What `completions.jsonl` holds is read back as it is.
        problems: benchmark -> its rows. Lines of others are passed over.

    Raises:
        Refusal: a line that is of no problem, or without a completion; completions of several occasions.
    """
    places = {name: _places(rows) for name, rows in problems.items()}
    found: dict[str, ByExit] = {name: defaultdict(dict) for name in problems}
    occasions: set[str] = set()
    for place, line in _lines(path):
        name = line.get("benchmark", next(iter(problems)) if len(problems) == 1 else None)
        if name is None:
            raise _refused(place, "has no benchmark", "one of: " + ", ".join(problems))
        if name not in problems:
            continue
        occasions.add(str(line.get("occasion")))
        if len(occasions) > 1:
            raise _refused(place, f"is of another occasion: {', '.join(sorted(occasions))}", "a file of one of them")
        text = _text(place, line)
        for index in _problems(place, line, name, problems[name], places[name]):
            given = found[name][str(line.get("exit", REFERENCE))].setdefault(index, Given([], []))
            (given.greedy if line.get("sample") == GREEDY else given.samples).append(text)
    for name, by_exit in found.items():
        if not by_exit:
            raise Refusal(KEY, f"{path} holds no completion of {name}", "its lines name another benchmark")
    return {name: dict(by_exit) for name, by_exit in found.items()}


def answered_by_all(given: ByExit, exits: Sequence[str], problems: Sequence[int]) -> list[int]:
    """The problems that each of these exits has answered.

    Raises:
        Refusal: an exit that has answered nothing, or no such problem.
    """
    for name in exits:
        if name not in given:
            raise Refusal("eval.exits", f"{name!r} has no given completions", nearest(name, given))
    kept = [problem for problem in problems if all(problem in given[name] for name in exits)]
    if not kept:
        raise Refusal(KEY, f"no problem has completions of all of {', '.join(exits)}", "fewer eval.exits")
    return kept


def _places(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Prompt -> its rows: equal prompts are one problem to whoever answers."""
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(prompt_key(row["prompt"]), []).append(index)
    return places


def _problems(
    place: str,
    line: Mapping[str, Any],
    name: str,
    rows: Sequence[Mapping[str, Any]],
    places: Mapping[str, Sequence[int]],
) -> Sequence[int]:
    prompt, index = line.get("prompt"), line.get("problem")
    if index is None:
        if prompt is None:
            raise _refused(place, f"has neither prompt nor problem, but {', '.join(line)}", "one of the two")
        if prompt_key(prompt) not in places:
            raise _refused(place, f"has a prompt that {name} has not", "the prompts of this data and its template")
        return places[prompt_key(prompt)]
    if type(index) is not int or not 0 <= index < len(rows):
        raise _refused(place, f"is of problem {index!r}, and {name} has {len(rows)}", f"0 to {len(rows) - 1}")
    if prompt is not None and prompt_key(prompt) != prompt_key(rows[index]["prompt"]):
        raise _refused(place, f"has another prompt than problem {index} of {name}", "a file of the same data")
    return [index]


def _text(place: str, line: Mapping[str, Any]) -> str:
    try:
        return completion_text(line["completion"])
    except (KeyError, TypeError, AttributeError):
        problem = f"has no completion, but {', '.join(line) or 'nothing'}"
        if "completion" in line:
            problem = f"has a completion that is no text: {json.dumps(line['completion'], default=str)[:80]}"
        raise _refused(place, problem, '{"completion": a text or chat messages, …}') from None


def _lines(path: Path):
    try:
        yield from read_records(path)
    except Refusal as refusal:
        raise Refusal(KEY, refusal.problem, refusal.allowed) from None


def _refused(place: str, problem: str, allowed: str) -> Refusal:
    return Refusal(KEY, f"{place} {problem}", allowed)
