"""Ratios of an earlier run, with what they may differ by; absolute times are never compared."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

COMMITTED = Path(__file__).with_suffix(".json")
TOLERANCE = 0.15
"""Share of a new entry's ratio that it may be worse by."""


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=COMMITTED,
        metavar="FILE",
        help=f"compare the ratios with a baseline's and end with 1 where one is worse; default: {COMMITTED.name}",
    )
    parser.add_argument(
        "--update", type=Path, nargs="?", const=COMMITTED, metavar="FILE", help="write the ratios into a baseline"
    )


def against_baseline(arguments: argparse.Namespace, ratios: Mapping[str, float]) -> None:
    """Do what the arguments ask for.

    Raises:
        SystemExit: with 1 where a ratio is worse than the baseline allows.
    """
    if arguments.update:
        before = json.loads(arguments.update.read_text()) if arguments.update.exists() else {}
        arguments.update.write_text(json.dumps(updated(before, ratios), indent=2) + "\n")
    if arguments.check:
        if not arguments.check.is_file():
            sys.exit(f"--check: no {arguments.check}")
        if worse := regressions(json.loads(arguments.check.read_text()), ratios):
            sys.exit("worse than the baseline:\n" + "\n".join(worse))
        print(f"no ratio is worse than {arguments.check.name} allows")


def lower_is_better(name: str) -> bool:
    """Memory's ratios are of ours over theirs; all others of their time over ours."""
    return name.endswith("memory")


def regressions(baseline: Mapping[str, Mapping[str, float]], ratios: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is worse than the baseline allows, and one if the baseline has none of them."""
    common = [name for name in ratios if name in baseline]
    if not common:
        return ["the baseline has none of these cases"]
    found = []
    for name in common:
        before, tolerance = baseline[name]["ratio"], baseline[name]["tolerance"]
        least, most = before * (1 - tolerance), before * (1 + tolerance)
        # Written so that NaN is a regression.
        if not (ratios[name] <= most if lower_is_better(name) else ratios[name] >= least):
            found.append(f"{name}: {ratios[name]:.3f}, the baseline has {before:.3f} and allows {tolerance:.0%}")
    return found


def updated(baseline: Mapping[str, Mapping[str, float]], ratios: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """With new ratios; an entry's tolerance stays."""
    new = {
        name: {"ratio": round(ratio, 3), "tolerance": baseline.get(name, {}).get("tolerance", TOLERANCE)}
        for name, ratio in ratios.items()
    }
    return dict(sorted({**baseline, **new}.items()))
