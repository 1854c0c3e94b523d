"""The page: all parts of a run put into the template, and written."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ruyi_rl import __version__
from ruyi_rl.report.html.benchmark_tables import benchmarks, harness_table, published_table
from ruyi_rl.report.html.exits import exit_numbers, exits_table, outcomes
from ruyi_rl.report.html.failure_table import failure_table
from ruyi_rl.report.html.interval_chart import IntervalChart, Rate, interval_chart
from ruyi_rl.report.html.panels import Curves, curves
from ruyi_rl.report.html.phase_bar import phase_bars
from ruyi_rl.report.html.records import RunRecord, StageRecord, read_run
from ruyi_rl.report.html.routing_chart import routings
from ruyi_rl.report.html.samples import samples
from ruyi_rl.report.html.stage_history import history
from ruyi_rl.report.tables import better_before, duration
from ruyi_rl.run_folder import REPORT, write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path) -> Path | None:
    """Writes the report of the run in `folder`; returns its path, None where the folder holds no stage of a run.

    Raises:
        OSError: the folder cannot be written.
    """
    run = read_run(folder)
    if not run.stages:
        return None
    path = folder / REPORT
    # A completion may hold half a surrogate pair, which no encoding has.
    write_text(path, page(run).encode("utf-8", "replace").decode("utf-8"))
    return path


def page(run: RunRecord) -> str:
    """The whole page as HTML."""
    numbers = exit_numbers(run)
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            run=run,
            exits=numbers,
            chosen=_chosen(run.config),
            exits_table=exits_table(run, numbers),
            change=_change_chart(run, numbers),
            better=[f"{record.name}: {line}" for record in run.stages for line in better_before(record.summary)],
            benchmarks=benchmarks(run, numbers),
            harness=harness_table(run, numbers),
            published=published_table(run),
            routings=routings(run, numbers),
            history=history(run, numbers),
            curves=_newest_first(run, numbers),
            phases=phase_bars(run.stages),
            samples=samples(run.stages, numbers),
            failures=failure_table(run),
            config=max(run.stages, key=lambda record: record.manifest.started, default=None),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            style=style,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _newest_first(run: RunRecord, numbers: Mapping[str, int]) -> list[tuple[StageRecord, Curves]]:
    """The curves of every stage that has some: what trains now, or has trained last, stands first."""
    found = [(record, curves(record, numbers)) for record in reversed(run.stages)]
    return [(record, shown) for record, shown in found if shown is not None]


def _change_chart(run: RunRecord, numbers: Mapping[str, int]) -> IntervalChart | None:
    """The exits' held-out rates at the first and at the last measurement."""
    rates = []
    for name, found in outcomes(run, numbers).items():
        value, error = found.last.pass_rate, found.last.standard_error
        bar = (None, None) if error is None else (value - error, value + error)
        rates.append(Rate(name, numbers[name], value, *bar, before=found.first.pass_rate if found.first else None))
    return interval_chart("Held-out pass rate", rates, "held-out pass rate") if rates else None


def _chosen(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run trains on what, as few words as there are."""
    found = []
    for block in ("model", "data", "reward", "rollout"):
        values = config.get(block)
        name = values.get("name") or values.get("backend") if isinstance(values, dict) else None
        if name:
            found.append((block, str(name)))
    return [*found, ("seed", str(config["seed"]))] if "seed" in config else found


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment
