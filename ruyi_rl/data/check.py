"""The look at the data before anything heavy: it imports neither torch nor datasets and stays well under a second."""

from __future__ import annotations

from collections.abc import Iterable

from ruyi_rl.data import embedded
from ruyi_rl.data.fields import map_rows
from ruyi_rl.data.files import locate, read_records
from ruyi_rl.data.mapping import compile_mapping
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal, nearest

SOURCES = ("rows", *embedded.SOURCES)
# Bytes read of a split; the loader checks the rest of a larger file.
BUDGET = 4 * 2**20


def calibration_form(options: DataOptions) -> str:
    """The stage whose kind of rows a calibration reads: `pretrain` where a `text` field is declared, else `sft`."""
    return "pretrain" if "text" in options.fields else "sft"


def check_data(options: DataOptions, stage: str, needs: Iterable[str] = ()) -> None:
    """Refuse data that the stage cannot use.

    Args:
        options: the `data` group.
        stage: the stage that will read it: `sft`, `pretrain`, `grpo` …
        needs: further fields that every row must have, such as those a reward reads.

    Raises:
        Refusal: an impossible option, a missing or empty file, a line that is not JSON, a row without a needed field.
            A hub dataset is only looked at when it is loaded.
    """
    if options.source not in SOURCES:
        raise Refusal("data.source", f"unknown source {options.source!r}", nearest(options.source, SOURCES))
    for key, least in (("limit", 1), ("holdout", 0), ("max_prompt_tokens", 1)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise Refusal(f"data.{key}", f"{value} is too small", f"at least {least}")
    mapping = compile_mapping(options)
    if options.source in embedded.SOURCES:
        embedded.check_embedded(options, needs)
        return
    if options.task:
        raise Refusal("data.task", "belongs to an embedded task, but data.source is rows", "data=arithmetic")
    sources = locate(options)
    for files, train in ((sources.train, True), (sources.test, False)):
        for path in files:
            for _ in map_rows(read_records(path, BUDGET // len(files)), mapping, stage, train, needs):
                pass
