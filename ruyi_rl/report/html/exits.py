"""The exits of a run: which there are, how large each is, and what the run has made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.history import rate
from ruyi_rl.report.html.records import RunRecord, StageRecord
from ruyi_rl.report.html.table import Cell, ShownTable, table
from ruyi_rl.report.tables import number, percent, points

HEADS = (
    *("exit", "held-out pass rate", "change", "greedy", "reward", "tokens", "cut off"),
    *("layers", "parameters", "on disk"),
)
SIZES = ("layers", "parameters", "bytes")


@dataclass(frozen=True)
class Measured:
    """Held-out rates of one exit at one moment."""

    moment: str
    """`after sft`"""
    how: str
    """Hash of all that decides a measurement but the family: only equal ones are compared."""
    pass_rate: float
    standard_error: float | None = None
    greedy: float | None = None
    mean_tokens: float | None = None
    truncated: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The first and the last measurement of one exit that were made alike; `first` is None where there is but one."""

    first: Measured | None
    last: Measured


def exit_numbers(run: RunRecord) -> dict[str, int]:
    """Exit -> its number, shallowest first: that of its colour in every figure."""
    found = dict.fromkeys(exit for record in run.stages for exit in exits_of(record))
    found |= dict.fromkeys(exit for record in run.stages if not exits_of(record) for exit in _logged(record))
    model = run.config.get("model")
    named = model.get("exits") if isinstance(model, dict) else None
    depths = {str(name): depth for name, depth in (named or {}).items() if isinstance(depth, int)}
    # The config's are those of a new family: one that was read from a folder has its own.
    order = sorted(found or depths, key=lambda name: depths.get(name, len(depths) + max(depths.values(), default=0)))
    return {name: number for number, name in enumerate(order)}


def _logged(record: StageRecord) -> list[str]:
    """The exits that a training logs, before any summary names them."""
    keys = record.rows[-1] if record.rows else {}
    names = [key.removesuffix(end) for key in keys for end in ("/loss", "/reward") if key.endswith(end)]
    return [name for name in dict.fromkeys(names) if name != "eval"]


def exits_of(record: StageRecord) -> Mapping[str, Mapping[str, Any]]:
    """Exit -> what a stage's summary says of it."""
    found = record.summary.get("exits")
    return {str(name): values for name, values in found.items()} if isinstance(found, dict) else {}


def outcomes(run: RunRecord, numbers: Mapping[str, int]) -> dict[str, Outcome]:
    """What the run has made of each exit that it has measured."""
    found = {}
    for name in numbers:
        measured = [each for record in run.stages for each in _measured(record, name)]
        if measured:
            alike = [each for each in measured if each.how == measured[-1].how]
            found[name] = Outcome(alike[0] if len(alike) > 1 else None, alike[-1])
    return found


def exits_table(run: RunRecord, numbers: Mapping[str, int]) -> ShownTable | None:
    """One row an exit; None where nothing is known of any."""
    found = outcomes(run, numbers)
    rows = [
        {
            "exit": Cell(name, exit=place),
            **_sizes(run, name),
            **(_rates(found[name]) if name in found else {}),
            **_reward(run, name),
        }
        for name, place in numbers.items()
    ]
    if not any(len(row) > 1 for row in rows):
        return None
    return table("The exits, shallowest first", rows, HEADS, _note(run))


def _note(run: RunRecord) -> str:
    found = next((held for record in reversed(run.stages) if (held := _held_out(record))), None)
    if found is None:
        return "Not measured yet."
    return (
        f"Rates on {found['problems']:,} held-out problems: mean of {found['samples']} samples at temperature "
        f"{found['temperature']:g} ± 1 standard error, and greedy."
    )


def _held_out(record: StageRecord) -> Mapping[str, Any]:
    return record.summary.get("held_out") or {}


def _measured(record: StageRecord, exit: str) -> list[Measured]:
    """What a stage has measured of an exit: the family that it started from, and its own."""
    held_out, values = _held_out(record), exits_of(record).get(exit, {})
    how, found = str(held_out.get("measurement", "")), []
    if _finite(values.get("pass_before")):
        error, greedy = values.get("pass_before_standard_error"), values.get("greedy_before")
        found.append(Measured(f"before {record.name}", how, values["pass_before"], error, greedy))
    score = (held_out.get("exits") or {}).get(exit, {})
    if _finite(score.get("pass_rate")):
        keys = ("pass_rate", "standard_error", "greedy", "mean_tokens", "truncated")
        moment = "by eval" if record.manifest.stage == "eval" else f"after {record.name}"
        found.append(Measured(moment, how, **{key: score.get(key) for key in keys}))
    return found


def _sizes(run: RunRecord, exit: str) -> dict[str, str]:
    """Of the exit's branch, after the last stage that tells."""
    known: dict[str, Any] = {}
    for record in run.stages:
        values = exits_of(record).get(exit, {})
        known |= {key: values[key] for key in SIZES if key in values}
        known |= {key: values[f"{key}_after"] for key in SIZES if f"{key}_after" in values}
        for row in (record.summary.get("history") or {}).get("rows", []):
            if row["exit"] == exit:
                known |= {key: row[key] for key in SIZES}
    return {
        **({"layers": str(known["layers"])} if "layers" in known else {}),
        **({"parameters": f"{known['parameters']:,}"} if "parameters" in known else {}),
        **({"on disk": byte_size(known["bytes"])} if "bytes" in known else {}),
    }


def _rates(found: Outcome) -> dict[str, Cell | str]:
    first, last = found.first, found.last
    moments = f"{first.moment} → {last.moment}" if first else last.moment
    rates = _arrow(
        rate(first.pass_rate, first.standard_error) if first else "", rate(last.pass_rate, last.standard_error)
    )
    cells: dict[str, Cell | str] = {"held-out pass rate": Cell(rates, moments)}
    if first is not None:
        cells["change"] = points(first.pass_rate, last.pass_rate)
    if _finite(last.greedy):
        cells["greedy"] = _arrow(rate(first.greedy) if first else "", percent(last.greedy))
    if _finite(last.mean_tokens):
        cells["tokens"] = f"{last.mean_tokens:.1f}"
    if _finite(last.truncated):
        cells["cut off"] = percent(last.truncated)
    return cells


def _reward(run: RunRecord, exit: str) -> dict[str, str]:
    """The reward in training, at its first and its last steps."""
    for record in reversed(run.stages):
        values = exits_of(record).get(exit, {})
        if _finite(values.get("reward_first")) and _finite(values.get("reward_last")):
            return {"reward": _arrow(number(values["reward_first"]), number(values["reward_last"]))}
    return {}


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}" if before else after


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
