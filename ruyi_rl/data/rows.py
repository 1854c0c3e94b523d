"""Rows from files or the hub as training and held-out datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from ruyi_rl.data.columns import dataset_from_rows
from ruyi_rl.data.fields import MappedRow, map_rows
from ruyi_rl.data.files import Sources, locate, read_records
from ruyi_rl.data.mapping import Mapping, compile_mapping
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

HOLDOUT = 256
"""Prompts held out where nobody says how many; a tenth of the prompts where that is less."""


@dataclass(frozen=True)
class SplitReport:
    """What became of a split's rows."""

    origin: str
    """The files, or the hub id and split, or what the split was cut from."""
    read: int
    """Rows read."""
    kept: int
    """Rows in the dataset: fewer than read where `limit`, the held-out cut or an empty answer took some."""
    dropped_empty: int = 0
    """Rows left out for an empty answer (`data.empty_answer=drop`)."""
    seen_in_training: int = 0
    """Held-out rows whose prompt is also a training prompt; 0 by construction where the split was cut."""


@dataclass(frozen=True)
class Splits:
    """Training and held-out rows with their reports."""

    train: datasets.Dataset
    test: datasets.Dataset
    train_report: SplitReport
    test_report: SplitReport


def load_splits(options: DataOptions, seed: int, stage: str | None = None, needs: Iterable[str] = ()) -> Splits:
    """Load the rows of `source=rows`, see `load_data`. Both splits are held in memory.

    Where there is no held-out split, `options.holdout` rows are cut from the training split: whole prompts (rows with
    an equal prompt stay together), chosen by the seed and the prompt, so that the cut is the same in every stage.

    Raises:
        Refusal: a file or hub dataset that is not there, a row that cannot be used (with file and line), or a held-out
            cut that would leave no training row.
    """
    mapping, sources, needs = compile_mapping(options), locate(options), tuple(needs)
    hub = _load_hub(options, sources.hub) if sources.hub else {}
    train = list(map_rows(_records(sources, hub, options.train, True), mapping, stage, True, needs))
    kept = [mapped for mapped in train if mapped.row is not None]
    origin = _origin(sources, options, True)
    if not kept:
        raise Refusal("data.path", f"{origin}: none of its {len(train)} rows is left", "rows with an answer")
    if sources.test or options.test in hub:
        test = list(map_rows(_records(sources, hub, options.test, False), mapping, stage, False, needs))
        test_origin, test_read = _origin(sources, options, False), len(test)
        held_out = [mapped for mapped in test if mapped.row is not None]
        dropped = test_read - len(held_out)
    else:
        cut = _held_out_keys(kept, options.holdout, seed, origin)
        held_out = _held_out_rows(kept, cut, sources, hub, options, mapping, stage, needs)
        kept = [mapped for mapped in kept if mapped.key not in cut]
        test_origin, test_read, dropped = f"cut from {origin}", len(held_out), 0
    kept = kept[: options.limit]
    training_keys = {mapped.key for mapped in kept}
    return Splits(
        dataset_from_rows([mapped.row for mapped in kept]),
        dataset_from_rows([mapped.row for mapped in held_out]),
        SplitReport(origin, len(train), len(kept), sum(mapped.row is None for mapped in train)),
        SplitReport(
            test_origin, test_read, len(held_out), dropped, sum(mapped.key in training_keys for mapped in held_out)
        ),
    )


def _held_out_keys(rows: list[MappedRow], asked: int | None, seed: int, origin: str) -> set[str]:
    """The prompts to hold out: in the order of a seeded hash, so that no other row decides a prompt's place."""
    count: dict[str, int] = {}
    for mapped in rows:
        count[mapped.key] = count.get(mapped.key, 0) + 1
    holdout = min(HOLDOUT, max(1, len(count) // 10)) if asked is None else asked
    if len(count) <= holdout:
        raise Refusal(
            "data.holdout",
            f"{origin} has no held-out split beside it and only {len(count)} different prompts: {holdout} rows cannot "
            "be held out of them",
            "a smaller data.holdout, or a held-out file (data.test)",
        )
    cut, rows_cut = set(), 0
    for key in sorted(count, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        if rows_cut >= holdout:
            break
        cut.add(key)
        rows_cut += count[key]
    return cut


def _held_out_rows(
    kept: list[MappedRow],
    cut: set[str],
    sources: Sources,
    hub: dict[str, Any],
    options: DataOptions,
    mapping: Mapping,
    stage: str | None,
    needs: tuple[str, ...],
) -> list[MappedRow]:
    """The cut rows, mapped as held-out rows are: their files are read again, for the mapped rows have lost fields."""
    if not cut:
        return []
    places = {mapped.place for mapped in kept if mapped.key in cut}
    records = (record for record in _records(sources, hub, options.train, True) if record[0] in places)
    return list(map_rows(records, mapping, stage, False, needs))


def _records(sources: Sources, hub: dict[str, Any], split: str, train: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if sources.hub:
        for number, row in enumerate(hub[split], 1):
            yield f"{sources.hub} {split} row {number}", row
    for path in sources.train if train else sources.test:
        yield from read_records(path)


def _origin(sources: Sources, options: DataOptions, train: bool) -> str:
    if sources.hub:
        return f"{sources.hub} {options.train if train else options.test}"
    return ", ".join(str(path) for path in (sources.train if train else sources.test))


def _load_hub(options: DataOptions, name: str) -> dict[str, datasets.Dataset]:
    try:
        splits = datasets.load_dataset(name, options.subset)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        # datasets reports a dataset or configuration that does not exist, or no network, by these three.
        raise Refusal(
            "data.path", f"{name} is no file or folder here and could not be loaded from the hub: {error}"
        ) from error
    if options.train not in splits:
        raise Refusal("data.train", f"{name} has no split {options.train!r}", "its splits: " + ", ".join(splits))
    return splits
