"""What two runs of one command have left that is not equal, bit by bit; times and places are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ruyi_rl.training.callbacks import read_metrics

UNLIKE = ("time/", "phases", "run", "seconds", "step_time", "share", "sync_share")
"""Keys of metrics and summaries, or their beginnings with a slash, that no two runs share."""
UNITS = ("seconds", "per_second")


def differences(run: Path, whole: Path) -> list[str]:
    """How what a stage has left in `run` differs from what it has left in `whole`; one line a file."""
    found = []
    for name in sorted({path.name for folder in (run, whole) for path in folder.glob("*.safetensors")}):
        if not all((folder / name).exists() for folder in (run, whole)):
            found.append(f"{name} is in one of them only")
            continue
        first, second = load_file(run / name), load_file(whole / name)
        if unlike := [key for key in {*first, *second} if not same_bits(first.get(key), second.get(key))]:
            found.append(f"{name}: {len(unlike)} of {len(second)} tensors, {min(unlike)} first")
    found += _rows("metrics.jsonl", *(read_metrics(folder / "metrics.jsonl") for folder in (run, whole)))
    failures = ("reward_failures.jsonl", "skipped_updates.jsonl")
    for name in failures:
        found += _rows(name, *(read_metrics(folder / name) for folder in (run, whole)))
    summaries = [comparable(json.loads((folder / "summary.json").read_text())) for folder in (run, whole)]
    if unlike := unequal(*summaries):
        found.append(f"summary.json: {unlike[:4]}")
    return found


def same_bits(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two tensors have the same shape, dtype and bits, those of NaN and of -0 included."""
    if first is None or second is None or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return first.numpy().tobytes() == second.numpy().tobytes()


def comparable(value: Any) -> Any:
    """A JSON value without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items() if not _differs_always(key)}
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


def unequal(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Keys of two mappings whose values differ; NaN equals NaN."""
    keys = [*second, *(key for key in first if key not in second)]
    return [key for key in keys if json.dumps(first.get(key)) != json.dumps(second.get(key))]


def _rows(name: str, run: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[str]:
    if len(run) != len(whole):
        return [f"{name}: {len(run)} rows for {len(whole)}"]
    for number, (first, second) in enumerate(zip(run, whole), start=1):
        if unlike := unequal(comparable(first), comparable(second)):
            return [f"{name}: row {number}, {', '.join(unlike[:4])}"]
    return []


def _differs_always(key: str) -> bool:
    return key in UNLIKE or key.startswith("time/") or key.rpartition("/")[2].endswith(UNITS)
