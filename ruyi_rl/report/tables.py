"""The result of a stage as a table, read from its `summary.json`. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.benchmark_table import print_benchmarks
from ruyi_rl.report.harness_table import harness_table
from ruyi_rl.report.history import ERROR, print_history, rate
from ruyi_rl.report.published import published_table
from ruyi_rl.run_folder import REPORT, StageFolder

NEXT = {
    "init": "sft",
    "pretrain": "sft",
    "sft": "grpo",
    "expand": "expanded_sft",
    "expanded_pretrain": "expanded_sft",
    "expanded_sft": "grpo",
    "compress": "eval",
}
"""Stage -> the one that makes sense after it."""


def print_result(console: Console, summary: Mapping[str, Any], last: bool = True) -> None:
    """Prints a stage's table, where it lies and, after the `last` stage of a run, what can be done next."""
    if summary["exits"]:
        console.print(result_table(summary))
    print_benchmarks(console, summary.get("benchmarks", {}))
    if summary.get("harness"):
        console.print(harness_table(summary["harness"]))
    if summary.get("published"):
        console.print(published_table(summary["published"], summary["published_source"]))
    if summary.get("phases"):
        console.print(f"time in training: {phase_line(summary['phases'])}", style="dim")
    for line in better_before(summary):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if "rollouts" in summary:
        console.print(
            f"[bold]{escape(summary['rollouts'])}[/] holds {summary['completions']:,} rollouts.", soft_wrap=True
        )
        train = f"python -m ruyi_rl stage=grpo grpo.replay={summary['rollouts']} with the same options trains on them"
        console.print(f"Next: {escape(train)}", style="dim", soft_wrap=True)
        return
    if "history" in summary:
        print_history(console, summary["history"])
    console.print(f"[bold]{escape(str(summary['run']))}[/] holds {_files(summary)}.", soft_wrap=True)
    if summary.get("reward_failures"):
        console.print(
            f"{summary['reward_failures']} completions could not be scored and were left out.", style="yellow"
        )
    if not last:
        return
    if (report := Path(summary["run"]).parent / REPORT).is_file():
        console.print(f"[bold]{escape(str(report))}[/] shows the run in a browser.", soft_wrap=True)
    if summary["stage"] in NEXT:
        command = f"python -m ruyi_rl stage={NEXT[summary['stage']]}"
        # Without `expand` among its stages a run would not find the expanded family by itself.
        if summary.get("start_from") or "expand" in summary["stage"] or summary["stage"] == "compress":
            command += f" start_from={summary['run']} and the other options"
        else:
            command += " with the same options"
        console.print(f"Next: {escape(command)}", style="dim", soft_wrap=True)
    else:
        family = summary.get("family", summary["run"])
        talk = f"python -m ruyi_rl stage=generate start_from={family}"
        export, load = "stage=export for a stock Qwen of each exit", f'Family.from_pretrained("{family}")'
        told = f"Next: {escape(talk)}, {export}, or {escape(load)} (from ruyi_rl.family)."
        console.print(told, style="dim", soft_wrap=True)


def already_done(console: Console, stage: str, folder: StageFolder) -> None:
    """Prints the table of a stage that need not run again."""
    console.print(f"{stage} is done already with this config; fresh=true runs it again.", style="green")
    print_result(console, folder.summary())


def result_table(summary: Mapping[str, Any]) -> Table:
    """The table of a summary, one row an exit."""
    columns = COLUMNS.get(summary["stage"], _sft_columns)
    if "rollouts" in summary:
        columns = _rollout_columns
    if summary["stage"] == "compress" and summary.get("recover_steps"):
        columns = _recovered_columns
    rows = {name: columns(values) for name, values in summary["exits"].items()}
    # A column that only some exits have is empty for the others.
    headings = dict.fromkeys(heading for cells in rows.values() for heading in cells)
    seconds = duration(summary["seconds"])
    table = Table(title=f"{summary['stage']} · seed {summary['seed']} · {seconds}", title_justify="left")
    table.add_column("exit", style="bold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        table.add_row(escape(name), *(cells.get(heading, "") for heading in headings))
    table.caption, table.caption_justify = caption(summary), "left"
    return table


def caption(summary: Mapping[str, Any]) -> str | None:
    """What a table's figures are of; None where its headings say it."""
    if summary["stage"] == "expand":
        exit, blocks = escape(summary["exit"]), summary["blocks"]
        return (
            f"{exit} has {blocks} new block{'s' if blocks > 1 else ''} and computes what it did; train_only=expansion "
            f"trains {percent(summary['trained_share'])} of its branch"
        )
    held_out = summary.get("held_out")
    if not held_out:
        return None
    return (
        f"held-out: {held_out['problems']} problems, mean of {held_out['samples']} samples at temperature "
        f"{held_out['temperature']:g}{f' {ERROR}' if summary['stage'] == 'eval' else ''}, and greedy"
    )


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


def _compress_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    return {
        **({"held-out before": percent(exit["pass_before"])} if "pass_before" in exit else {}),
        **_kept(exit, "compressed"),
        "parameters": f"{exit['parameters_before']:,} → {exit['parameters_after']:,}",
        "on disk": f"{byte_size(exit['bytes_before'])} → {byte_size(exit['bytes_after'])}",
    }


def _recovered_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    cells = _compress_columns(exit)
    sizes = {heading: cells.pop(heading) for heading in ("parameters", "on disk")}
    return {**cells, **_kept(exit, "after", "recovered"), **sizes}


def _kept(exit: Mapping[str, Any], when: str, name: str = "compressed") -> dict[str, str]:
    """A later pass rate, and which share it is of the one before."""
    if "pass_before" not in exit:
        return {}
    before, value = exit["pass_before"], exit[f"pass_{when}"]
    return {f"{name} (kept)": f"{percent(value)} ({percent(value / before if before > 0 else None)})"}


def _eval_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    if "pass" in exit:
        cells = {
            "held-out pass rate": rate(exit["pass"], exit["pass_standard_error"]) or percent(None),
            "greedy": percent(exit["greedy"]),
            "tokens": f"{exit['mean_tokens']:.1f}",
            "truncated": percent(exit["truncated"]),
        }
    sizes = {
        "layers": str(exit["layers"]),
        "parameters": f"{exit['parameters']:,}",
        "on disk": byte_size(exit["bytes"]),
    }
    return cells | sizes


def _rollout_columns(exit: Mapping[str, Any]) -> dict[str, str]:
    return {
        "completions": f"{exit['completions']:,}",
        "reward": number(exit["reward"]),
        "tokens": f"{exit['mean_tokens']:.1f}",
        "truncated": percent(exit["truncated"]),
    }


COLUMNS = {
    "init": _init_columns,
    "expand": _init_columns,
    "grpo": _grpo_columns,
    "compress": _compress_columns,
    "eval": _eval_columns,
}
"""Stage -> an exit's cells; those of the training on rows stand for the others."""


def better_before(summary: Mapping[str, Any]) -> list[str]:
    """A line for each exit, and for their mean, that an evaluation in between found better than the last one did."""
    best, held_out = summary.get("best"), summary.get("held_out")
    if not best or not held_out:
        return []
    last = {name: score["pass_rate"] for name, score in held_out["exits"].items()}
    compared = [(name, last[name], each) for name, each in best["exits"].items()]
    if best.get("mean"):
        compared.append(("the mean over exits", math.fsum(last.values()) / len(last), best["mean"]))
    lines = []
    for name, now, each in compared:
        if each["step"] != best["step"] and each["pass_rate"] > now:
            shown = rate(each["pass_rate"], each.get("standard_error"))
            place = f"kept in {each['family']}" if each["family"] else "not kept (keep_best=exit keeps it)"
            lines.append(f"{name} was better at step {each['step']}: {shown}, now {percent(now)}; {place}")
    return lines


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
    stage, tuned = summary["stage"], summary.get("recover_steps")
    if stage == "eval":
        measured = "".join(f"{name}/, " for name in summary.get("benchmarks", {}))
        measured += "completions.jsonl, " if measured else ""
        measured += "harness.json, " if summary.get("harness") else ""
        return f"summary.json, {measured}history.json and history.png"
    if stage in ("init", "expand"):
        return "the family, its tokenizer and summary.json"
    if stage == "compress" and not tuned:
        return "the family, its tokenizer, summary.json and matrices.json"
    matrices = "matrices.json, " if stage == "compress" else ""
    return f"the family, its tokenizer, summary.json, {matrices}metrics.jsonl and curves.png"
