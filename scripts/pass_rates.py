"""Print held-out pass rates of finished runs as a Markdown table, seeds aggregated.

    python scripts/pass_rates.py --group 'scale-(.*)-seed.*' runs/scale-*

A run's group is what the pattern's first group catches in its folder's name; without a pattern every run is its own.
Cells are `before → after` in percent for `grpo`, and the mean change with its standard error over the runs; for `sft`
the pass rate alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path


def read(run: Path, stage: str) -> dict | None:
    """The exits of a run's summary; None where the stage has not ended."""
    file = run / stage / "summary.json"
    return json.loads(file.read_text())["exits"] if file.is_file() else None


def spread(values: list[float]) -> str:
    """Mean in points, with the standard error over runs where there are several."""
    mean = f"{100 * statistics.mean(values):+.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def cell(exits: list[dict], kind: str) -> str:
    """One exit of one group."""
    if f"{kind}_before" not in exits[0]:
        return " / ".join(f"{100 * exit[kind]:.1f}" for exit in exits)
    before = statistics.mean(exit[f"{kind}_before"] for exit in exits)
    after = statistics.mean(exit[f"{kind}_after"] for exit in exits)
    change = spread([exit[f"{kind}_after"] - exit[f"{kind}_before"] for exit in exits])
    return f"{100 * before:.1f} → {100 * after:.1f} ({change})"


def table(runs: list[Path], stage: str, pattern: str | None) -> str:
    """The Markdown table of `runs`, in their order."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        found = re.search(pattern, run.name) if pattern else None
        exits = read(run, stage)
        if exits is not None:
            groups.setdefault(found.group(1) if found else run.name, []).append(exits)
    if not groups:
        raise SystemExit(f"none of {len(runs)} folders holds a finished {stage}")
    names = list(next(iter(groups.values()))[0])
    lines = [
        "| run | n | " + " | ".join(f"{name} sampled | {name} greedy" for name in names) + " |",
        "|---" * (2 + 2 * len(names)) + "|",
    ]
    for group, summaries in groups.items():
        cells = [cell([summary[name] for summary in summaries], kind) for name in names for kind in ("pass", "greedy")]
        lines.append(f"| {group} | {len(summaries)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--stage", default="grpo", choices=["sft", "grpo"])
    parser.add_argument("--group", help="regular expression with one group over a run folder's name")
    options = parser.parse_args()
    print(table(options.runs, options.stage, options.group))


if __name__ == "__main__":
    main()
