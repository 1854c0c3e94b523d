"""The result of a stage as a table, read from its `summary.json`. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ruyi_rl.run_folder import StageFolder

NEXT = {
    "init": "python -m ruyi_rl stage=sft with the same options",
    "pretrain": "python -m ruyi_rl stage=sft with the same options",
    "sft": "python -m ruyi_rl stage=grpo with the same options",
}


def print_result(console: Console, summary: Mapping[str, Any], last: bool = True) -> None:
    """Prints a stage's table, where it lies and, after the `last` stage of a run, what can be done next."""
    console.print(result_table(summary))
    if summary.get("phases"):
        console.print(f"time in training: {phase_line(summary['phases'])}", style="dim")
    if "rollouts" in summary:
        console.print(
            f"[bold]{escape(summary['rollouts'])}[/] holds {summary['completions']:,} rollouts.", soft_wrap=True
        )
        train = f"python -m ruyi_rl stage=grpo grpo.replay={summary['rollouts']} with the same options trains on them"
        console.print(f"Next: {escape(train)}", style="dim", soft_wrap=True)
        return
    console.print(f"[bold]{escape(str(summary['run']))}[/] holds the family, {_files(summary)}.", soft_wrap=True)
    if summary.get("reward_failures"):
        console.print(
            f"{summary['reward_failures']} completions could not be scored and were left out.", style="yellow"
        )
    if not last:
        return
    if summary["stage"] in NEXT:
        console.print(f"Next: {NEXT[summary['stage']]}", style="dim")
    else:
        talk = f"python -m ruyi_rl stage=generate start_from={summary['run']}"
        load = f'Family.from_pretrained("{summary["run"]}")'
        console.print(f"Next: {escape(talk)}, or {escape(load)} (from ruyi_rl.family).", style="dim", soft_wrap=True)


def already_done(console: Console, stage: str, folder: StageFolder) -> None:
    """Prints the table of a stage that need not run again."""
    console.print(f"{stage} is done already with this config; fresh=true runs it again.", style="green")
    print_result(console, folder.summary())


def result_table(summary: Mapping[str, Any]) -> Table:
    """The table of a summary, one row an exit."""
    columns = {"init": _init_columns, "grpo": _grpo_columns}.get(summary["stage"], _sft_columns)
    if "rollouts" in summary:
        columns = _rollout_columns
    rows = {name: columns(values) for name, values in summary["exits"].items()}
    seconds = duration(summary["seconds"])
    table = Table(title=f"{summary['stage']} · seed {summary['seed']} · {seconds}", title_justify="left")
    table.add_column("exit", style="bold")
    for heading in next(iter(rows.values())):
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        table.add_row(escape(name), *cells.values())
    held_out = summary.get("held_out")
    if held_out:
        table.caption = (
            f"held-out: {held_out['problems']} problems, mean of {held_out['samples']} samples at temperature "
            f"{held_out['temperature']:g}, and greedy"
        )
        table.caption_justify = "left"
    return table


def _init_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    return {"k": str(exit["k"]), "layers": str(exit["layers"]), "parameters": f"{exit['parameters']:,}"}


def _sft_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    cells = {
        "loss": f"{number(exit['loss_first'])} → {number(exit['loss_last'])}",
        "token accuracy": f"{number(exit['accuracy_first'])} → {number(exit['accuracy_last'])}",
    }
    if "pass" in exit:
        cells |= {"held-out pass rate": percent(exit["pass"]), "greedy": percent(exit["greedy"])}
    return cells


def _grpo_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    if "pass_before" in exit:
        cells = {
            "held-out pass rate": f"{percent(exit['pass_before'])} → {percent(exit['pass_after'])}",
            "change": points(exit["pass_before"], exit["pass_after"]),
            "greedy": f"{percent(exit['greedy_before'])} → {percent(exit['greedy_after'])}",
        }
    return {**cells, "reward": f"{number(exit['reward_first'])} → {number(exit['reward_last'])}"}


def _rollout_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    return {
        "completions": f"{exit['completions']:,}",
        "reward": number(exit["reward"]),
        "tokens": f"{exit['mean_tokens']:.1f}",
        "truncated": percent(exit["truncated"]),
    }


def phase_line(phases: Mapping[str, Mapping[str, float]]) -> str:
    """`rollout 61 %, update 24 %, …`: the phases' shares, largest first, without those that round to nothing."""
    shares = sorted(((phase["share"], name) for name, phase in phases.items()), reverse=True)
    return ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= 0.005)


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as `41.2 %`, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def points(before: float | None, after: float | None) -> str:
    """The change of a share in percentage points, with its sign."""
    if before is None or after is None or math.isnan(before) or math.isnan(after):
        return "–"
    return f"{100 * (after - before):+.1f} points"


def duration(seconds: float) -> str:
    """`3:07` or `1:02:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _files(summary: Mapping[str, Any]) -> str:
    if summary["stage"] == "init":
        return "its tokenizer and summary.json"
    return "its tokenizer, summary.json, metrics.jsonl and curves.png"
