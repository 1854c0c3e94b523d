"""The embedded tasks and their mixture: rows generated from the seed. Imports no torch and no datasets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ruyi_rl.data import arithmetic, toy_code
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal, nearest

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One embedded task."""

    columns: frozenset[str]
    """What its rows have for rewards to read."""
    options: Callable[[dict[str, Any]], Any]
    """`data.task` as checked options; raises Refusal."""
    check_problems: Callable[[Any], None]
    """Raises Refusal where the options ask for more problems than exist."""
    generate: Callable[[Any, int], tuple[Rows, Rows]]
    """(options, seed) -> training and held-out rows."""
    generate_texts: Callable[[Any, int], tuple[Rows, Rows]]
    """The same for pre-training."""


TASKS = {
    "arithmetic": Task(
        frozenset({"answer", "level", "terms"}),
        arithmetic.arithmetic_options,
        arithmetic.check_problems,
        arithmetic.generate,
        arithmetic.generate_texts,
    ),
    "toy_code": Task(
        frozenset({"tests", "kind"}),
        toy_code.toy_code_options,
        toy_code.check_problems,
        toy_code.generate,
        toy_code.generate_texts,
    ),
}
MIXTURE = "mixture"
SOURCES = (*TASKS, MIXTURE)
"""What `data.source` may be for rows of this module."""
JUDGED_BY = ("answer", "tests")
"""Columns in which None means that the row is for another reward to judge."""


def check_embedded(options: DataOptions, needs: Iterable[str] = ()) -> None:
    """Refuse an embedded task that cannot be generated, or whose rows the rewards cannot judge.

    Args:
        options: the `data` group, of a source among `SOURCES`.
        needs: fields that the rewards read. Of `answer` and `tests` one is enough: the other is None in the rows, on
            which its reward abstains.

    Raises:
        Refusal: see above.
    """
    _refuse_row_options(options)
    tasks = _tasks(options)
    for key, task, chosen in tasks:
        _under(key, task.check_problems, chosen)
    columns = frozenset().union(*(task.columns for _, task, _ in tasks))
    lacking = [name for name in needs if name not in columns]
    judged = columns.intersection(JUDGED_BY).intersection(needs)
    if lacking and not (judged and set(lacking) <= set(JUDGED_BY)):
        problem = f"its rows have no {lacking[0]!r}, which the rewards read"
        allowed = f"reward=math_code, or another that reads {', '.join(sorted(columns))}"
        raise Refusal("data.source", f"{options.source}: {problem}", allowed)


def embedded_rows(options: DataOptions, seed: int, stage: str | None, needs: Iterable[str] = ()) -> tuple[Rows, Rows]:
    """Training and held-out rows of a checked source: for `sft` and `pretrain` one row a demonstration, for any other
    stage one a problem. A mixture's rows are shuffled by the seed; what only some tasks have is None in the others."""
    train, test = [], []
    tasks = _tasks(options)
    for _, task, chosen in tasks:
        made = (task.generate_texts if stage == "pretrain" else task.generate)(chosen, seed)
        train += made[0] if stage in ("sft", "pretrain") else _one_a_problem(made[0])
        test += made[1]
    if len(tasks) > 1:
        for name, rows in (("training", train), ("held-out", test)):
            random.Random(f"mixture {name} {seed}").shuffle(rows)
    empty = dict.fromkeys(needs)
    return [empty | row for row in train], [empty | row for row in test]


def _tasks(options: DataOptions) -> list[tuple[str, Task, Any]]:
    """(config key, task, its options) of the source's tasks."""
    if options.source in TASKS:
        task = TASKS[options.source]
        return [("data.task", task, task.options(options.task))]
    if not options.task:
        raise Refusal("data.task", "the mixture names no task", "{arithmetic: {}, toy_code: {}}")
    found = []
    for name, values in options.task.items():
        key = f"data.task.{name}"
        if name not in TASKS:
            raise Refusal(key, "unknown task", nearest(str(name), TASKS))
        if not isinstance(values, dict):
            raise Refusal(key, f"{values!r} is no group of options", "{}")
        found.append((key, TASKS[name], _under(key, TASKS[name].options, values)))
    return found


def _under(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    """Call a task's check, which names its keys as if the task stood alone."""
    try:
        return check(value)
    except Refusal as refusal:
        raise Refusal(key + refusal.key.removeprefix("data.task"), refusal.problem, refusal.allowed) from None


def _one_a_problem(rows: Rows) -> Rows:
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["prompt"][0]["content"], row)
    return [{name: row[name] for name in row if name not in ("completion", "style")} for row in first.values()]


def _refuse_row_options(options: DataOptions) -> None:
    default = DataOptions()
    keys = ("path", "fields", "prompt_template", "completion_template", "completion_strip", "answer_pattern", "subset")
    for key in keys:
        if getattr(options, key) != getattr(default, key):
            problem = f"is not read by the embedded task (data.source is {options.source})"
            raise Refusal(f"data.{key}", problem, "choose data that are rows: data=gsm8k, …")
