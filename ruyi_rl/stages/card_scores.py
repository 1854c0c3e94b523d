"""The evaluation of a family as tables for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.run_folder import DONE, StageFolder, fingerprint

OTHERS = {"mean_tokens": "mean tokens", "truncated": "truncated"}
"""Figures of an exit besides its rates -> column."""


@dataclass(frozen=True)
class ScoreTable:
    """Cells as they are shown; the first column names the exits or tasks."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def score_tables(family: Path) -> list[ScoreTable]:
    """What `stage=eval` of the same run found for this very family, else what the stage that made it measured itself;
    empty: nothing was measured."""
    evaluation = StageFolder(family.parent / "eval")
    manifest = evaluation.manifest()
    if (
        manifest is not None
        and manifest.status == DONE
        and manifest.input is not None
        and Path(manifest.input).name == family.name
        and manifest.input_hash == fingerprint(family)
    ):
        summary = evaluation.summary()
    else:
        summary = _summary(family)
    tables = [benchmark_table(name, found) for name, found in (summary.get("benchmarks") or {}).items()]
    if not tables and summary.get("held_out"):
        tables = [held_out_table(summary["held_out"])]
    if summary.get("harness"):
        tables.append(harness_table(summary["harness"]))
    return tables


def benchmark_table(name: str, found: Mapping[str, Any]) -> ScoreTable:
    """One benchmark of eval's summary: rates with their 95 % intervals."""
    exits = found["exits"]
    first = next(iter(exits.values()))
    rates = [key for key, value in first.items() if isinstance(value, Mapping) and "value" in value]
    others = [key for key in OTHERS if key in first]
    rows = [
        [exit, *(interval(score.get(key)) for key in rates), *(_other(key, score.get(key)) for key in others)]
        for exit, score in exits.items()
    ]
    samples = f", {found['samples']} samples each" if found.get("samples") else ""
    if samples and found.get("temperature") is not None:
        samples += f" at temperature {found['temperature']:g}"
    title = f"{name}: {found['problems']} problems{samples}; 95 % intervals in brackets"
    return ScoreTable(title, ["exit", *rates, *(OTHERS[key] for key in others)], rows)


def held_out_table(found: Mapping[str, Any]) -> ScoreTable:
    """What a training stage measured on its held-out rows."""
    rows = [
        [
            exit,
            percent(score.get("greedy")),
            f"{percent(score['pass_rate'])} ± {percent(score.get('standard_error'))}",
            *(_other(key, score.get(key)) for key in OTHERS),
        ]
        for exit, score in found["exits"].items()
    ]
    title = (
        f"held-out rows: {found['problems']} problems, mean of {found['samples']} samples at temperature "
        f"{found['temperature']:g} (± its standard error), and greedy"
    )
    return ScoreTable(title, ["exit", "greedy", "pass rate", *OTHERS.values()], rows)


def harness_table(found: Mapping[str, Any]) -> ScoreTable:
    """The tasks of lm-evaluation-harness: a row each, a column an exit."""
    exits = list(dict.fromkeys(exit for task in found.values() for exit in task["exits"]))
    rows = []
    for name, task in found.items():
        cells = []
        for exit in exits:
            score = task["exits"].get(exit) or {}
            error = score.get("standard_error")
            cells.append(percent(score.get("value")) + ("" if error is None else f" ± {percent(error)}"))
        rows.append([name, str(task.get("metric", "")), *cells])
    return ScoreTable("lm-evaluation-harness (± the standard error)", ["task", "metric", *exits], rows)


def interval(score: Any) -> str:
    """`41.2 % [35.0, 47.4]`; a dash where nothing was measured."""
    if not isinstance(score, Mapping) or score.get("value") is None:
        return "–"
    if score.get("low") is None or score.get("high") is None:
        return percent(score["value"])
    return f"{percent(score['value'])} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def percent(share: float | None) -> str:
    """`41.2 %`; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _other(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return percent(value) if key == "truncated" else f"{value:.1f}"


def _summary(folder: Path) -> Mapping[str, Any]:
    try:
        return StageFolder(folder).summary()
    except (FileNotFoundError, ValueError):
        return {}
