"""`stage=compare`: runs in one table, overrides against results per exit, seeds aggregated. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.compare.metrics import chosen_metrics, default_metrics
from ruyi_rl.report.compare.output import as_csv, as_json, markdown, missing_text, rich_table, title
from ruyi_rl.report.compare.plot import draw_comparison
from ruyi_rl.report.compare.runs import find_runs, sweep_of
from ruyi_rl.report.compare.table import compare
from ruyi_rl.report.console import run_console
from ruyi_rl.run_folder import require_writable, write_json, write_text
from ruyi_rl.validation.comparing import compared_sources


def run(config: RunConfig) -> None:
    """Prints the table and writes it as compare.json, compare.csv, compare.md and compare.png.

    Raises:
        Refusal: none of the runs has a result, or none of a chosen metric.
    """
    sources = compared_sources(config)
    options, console = config.compare, run_console()
    runs = find_runs(sources, options.stage)
    summaries = [run.summary for run in runs if run.summary is not None]
    if not summaries:
        listed = "; ".join(missing_text(run) for run in runs[:5])
        raise Refusal("runs", f"none of {len(runs)} has a result: {listed}", "compare.stage=<a stage that is done>")
    metrics = chosen_metrics(options.metrics, summaries) if options.metrics else default_metrics(summaries)
    for metric in metrics:
        if options.metrics and not any(metric.values(summary) for summary in summaries):
            path = metric.paths[0][1]
            raise Refusal("compare.metrics", f"no run has {path!r}", "a dotted path in summary.json, * for the exit")
    comparison = compare(runs, metrics)
    folder = output_folder(config, sources)
    require_writable(folder)
    write_json(folder / "compare.json", as_json(comparison))
    write_text(folder / "compare.csv", as_csv(comparison))
    write_text(folder / "compare.md", markdown(comparison))
    drawn = draw_comparison(comparison, folder / "compare.png", title(comparison))
    console.print(rich_table(comparison))
    for run in comparison.missing:
        console.print(f"without a result: {missing_text(run)}", style="yellow", markup=False, soft_wrap=True)
    files = "compare.json, compare.csv, compare.md" + (" and compare.png" if drawn else "")
    console.print(f"{folder} holds {files}", markup=False, soft_wrap=True)


def output_folder(config: RunConfig, sources: list[str]) -> Path:
    """`compare.output`, else the sweep that is compared, else a folder of its own by what is compared."""
    if config.compare.output is not None:
        return Path(config.compare.output).expanduser()
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:6]
    return sweep_of(sources) or Path("multirun") / f"compare-{digest}"
