"""Which rows of a data set are a benchmark's problems, and its own completions of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ruyi_rl.data.files import locate
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal


def whole_split(options: DataOptions) -> DataOptions:
    """Options whose training rows are all problems: the whole test split, or without one the whole training split.

    `data` cuts held-out rows from a set of one split, so that a training never sees them; a benchmark is all of it.
    """
    if options.test is None:
        return replace(options, holdout=0, limit=None)
    path = Path(options.path or "").expanduser()
    if path.is_file():
        # Beside a single file only a split that is spelt out counts, see `locate`; else the file is the benchmark.
        beside = locate(options).test
        return replace(options, path=str(beside[0] if beside else path), test=None, holdout=0, limit=None)
    return replace(options, train=options.test, test=None, holdout=0, limit=None)


def held_out_split(options: DataOptions) -> DataOptions:
    """Options whose training rows hold the problems that `data` holds out, and perhaps others."""
    whole = whole_split(options)
    try:
        locate(whole)
    except Refusal:
        return whole_split(replace(options, test=None))  # there is no such split: they are cut from the other one
    return whole


@contextmanager
def under(block: str) -> Iterator[None]:
    """Inside, a refusal of `data` or `reward` names the key as it stands in this block of the config; "": at the root.

    Raises:
        Refusal: the one that was raised, with its whole key.
    """
    try:
        yield
    except Refusal as refusal:
        key = refusal.key
        if block and key == "data.train":
            key = "data.test or .train"
        raise Refusal(f"{block}.{key}" if block else key, refusal.problem, refusal.allowed) from refusal
