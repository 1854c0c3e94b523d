"""The one entry to the data: training and held-out rows of a stage, from files, the hub or an embedded task."""

from __future__ import annotations

from collections.abc import Iterable

from ruyi_rl.data import embedded
from ruyi_rl.data.check import check_data
from ruyi_rl.data.columns import dataset_from_rows
from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.rows import SplitReport, Splits, load_splits


def load_data(options: DataOptions, seed: int, stage: str | None = None, needs: Iterable[str] = ()) -> Splits:
    """Load the rows of a stage.

    Every stage of a run gets the same problems held out, because the split depends on the data and the seed alone.

    Args:
        options: the `data` group.
        seed: the run's seed.
        stage: `sft`: rows {prompt, completion} or {messages}; `pretrain`: {text}; any other: {prompt}, and of the
            embedded task one row a problem. All have `answer` where the data has it, and the data's other fields.
        needs: further fields that every row must have, such as those a reward reads; see `check_embedded` too.

    Raises:
        Refusal: see `check_data`; here every row is looked at.
    """
    check_data(options, stage or "", needs)
    if options.source in embedded.SOURCES:
        return _embedded(options, seed, stage, needs)
    return load_splits(options, seed, stage, needs)


def _embedded(options: DataOptions, seed: int, stage: str | None, needs: Iterable[str]) -> Splits:
    train, test = embedded.embedded_rows(options, seed, stage, needs)
    made, train = len(train), train[: options.limit]
    if options.system and stage != "pretrain":
        system = {"role": "system", "content": options.system}
        train, test = ([row | {"prompt": [system, *row["prompt"]]} for row in rows] for rows in (train, test))
    reports = (SplitReport(options.source, read, len(rows)) for read, rows in ((made, train), (len(test), test)))
    return Splits(dataset_from_rows(train), dataset_from_rows(test), *reports)
