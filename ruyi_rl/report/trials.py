"""What `stage=check_reward` found, as tables and as JSON. Importing this module imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ruyi_rl.report.streams import CONTROLS
from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.samples import EXCHANGED, ORIGINS, Samples
from ruyi_rl.rewards.trial import Trial

SIGNS = {"holds": "[green]holds[/]", "broken": "[bold red]BROKEN[/]", "note": "[yellow]note[/]"}
LEAST = 12
"""Characters that a prompt and a completion have in the narrowest terminal."""
SCORE = 6
"""Characters of a score."""


def print_trials(console: Console, trials: Sequence[Trial]) -> None:
    """The contract, one row a check and one column a function; then the notes, then the speeds."""
    table = Table(title="The contract", title_justify="left")
    table.add_column("check")
    for trial in trials:
        table.add_column(escape(trial.name), justify="center")
    outcomes = [_outcomes(trial) for trial in trials]
    for check in dict.fromkeys(check for found in outcomes for check in found):
        table.add_row(check, *(SIGNS.get(found.get(check, ""), "–") for found in outcomes))
    console.print(table)
    for name, verdict in ((t.name, v) for t in trials for v in t.verdicts if v.outcome == "note"):
        console.print(f"note on {name}: {verdict.problem}; {verdict.remedy}", style="yellow", markup=False)
    if any(trial.speed for trial in trials):
        console.print(_speeds(trials))


def print_samples(
    console: Console, samples: Samples, trials: Sequence[Trial], reward: Sequence[float | None] | None, shown: int
) -> None:
    """Samples with their scores and their reward, right and wrong ones in turn; means of all; what the origins mean.

    Args:
        reward: one a sample, all functions together; None where one alone is the reward.
        shown: most samples of the table.
    """
    columns = {trial.name: trial.rewards or [None] * len(samples) for trial in trials}
    columns |= {} if reward is None else {"reward": reward}
    table = Table(title="Samples", title_justify="left")
    room = console.width - sum(max(len(name), SCORE) + 3 for name in columns) - max(map(len, ORIGINS)) - 10
    asked_width = max(LEAST, room * 2 // 5)
    said_width = max(LEAST, room - asked_width)
    table.add_column("prompt", no_wrap=True)
    table.add_column("completion", no_wrap=True)
    table.add_column("origin", min_width=max(map(len, ORIGINS)))
    for name in columns:
        table.add_column(escape(name), justify="right", min_width=SCORE, style="bold" if name == "reward" else None)
    for place in list(_in_turn(samples))[:shown]:
        asked = _line(completion_text(samples.columns["prompts"][place]))
        said = _line(samples.completions[place])
        table.add_row(
            Text(asked if len(asked) <= asked_width else asked[: asked_width - 1] + "…"),
            # Answers stand last.
            Text(said if len(said) <= said_width else "…" + said[1 - said_width :]),
            samples.origins[place],
            *(number(values[place]) for values in columns.values()),
        )
    table.add_section()
    for origin in dict.fromkeys(samples.origins):
        places = [place for place, other in enumerate(samples.origins) if other == origin]
        means = (_mean([values[place] for place in places]) for values in columns.values())
        table.add_row(Text(f"all {len(places)}, mean"), "", origin, *means)
    console.print(table)
    for origin in dict.fromkeys(samples.origins):
        console.print(f"{origin}: {ORIGINS[origin]}", style="dim", markup=False)


def trials_as_json(
    name: str, samples: Samples, trials: Sequence[Trial], reward: Sequence[float | None] | None
) -> dict[str, Any]:
    """All results as plain values."""
    return {
        "reward": name,
        "holds": not any(trial.broken for trial in trials),
        "functions": {
            trial.name: {
                "checks": [asdict(verdict) for verdict in trial.verdicts],
                "speed": asdict(trial.speed) if trial.speed else None,
            }
            for trial in trials
        },
        "samples": [
            {
                "origin": samples.origins[place],
                "prompt": samples.columns["prompts"][place],
                "completion": samples.completions[place],
                "rewards": {trial.name: trial.rewards[place] if trial.rewards else None for trial in trials},
                "reward": reward[place] if reward else None,
            }
            for place in range(len(samples))
        ],
    }


def broken_list(trials: Sequence[Trial]) -> str:
    """What broke, one line each with what to do."""
    lines = [
        f"  {trial.name}, {verdict.check}: {verdict.problem}\n    -> {verdict.remedy}"
        for trial in trials
        for verdict in trial.broken
    ]
    return "\n".join(line.translate(CONTROLS) for line in lines)


def _outcomes(trial: Trial) -> dict[str, str]:
    """Check -> the worst outcome of it."""
    worst: dict[str, str] = {}
    for verdict in trial.verdicts:
        if worst.get(verdict.check) != "broken":
            worst[verdict.check] = verdict.outcome
    return worst


def _speeds(trials: Sequence[Trial]) -> Table:
    table = Table(title="Speed, of these samples over and over", title_justify="left")
    table.add_column("function")
    for heading in ("1 worker", "all workers", "one sample", "the slowest", "a worker holds"):
        table.add_column(heading, justify="right")
    for trial in trials:
        if (speed := trial.speed) is not None:
            table.add_row(
                escape(trial.name),
                f"{speed.one:,.0f} samples/s",
                f"{speed.all:,.0f} samples/s ({speed.workers})",
                f"{1000 * speed.median:.1f} ms",
                f"{1000 * speed.slowest:.1f} ms",
                f"{1024 * speed.memory_gb:,.0f} MiB",
            )
    if any(trial.speed.all < trial.speed.one for trial in trials if trial.speed):
        table.caption, table.caption_justify = (
            "slower with more workers: the way to them takes longer than the work",
            "left",
        )
    return table


def _in_turn(samples: Samples) -> Iterator[int]:
    """Places, such that each row's own completion is followed by the one that was exchanged into it."""
    wrong: dict[str, list[int]] = {}
    for place, origin in enumerate(samples.origins):
        if origin == EXCHANGED:
            wrong.setdefault(samples.groups[place], []).append(place)
    groups = samples.groups
    for place, origin in enumerate(samples.origins):
        if origin != EXCHANGED:
            yield place
            yield from wrong.pop(groups[place], [])


def _line(text: str) -> str:
    """The text on one line, without what steers a terminal."""
    return " ".join(text.split()).translate(CONTROLS)


def number(value: float | None) -> str:
    """A reward with three decimals at most, or a dash for None."""
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")


def _mean(values: Sequence[float | None]) -> str:
    given = [value for value in values if value is not None]
    return number(statistics.fmean(given)) if given else "–"
