"""`stage=compress`: an expanded exit's new blocks and head as thin factors, measured before, after, and recovered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.family import FamilyConfig
from ruyi_rl.family.options import CompressOptions
from ruyi_rl.family.stored import stored_family
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.compression import matrix_table, method_table
from ruyi_rl.report.curves import draw_curves
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.calibration_rows import CalibrationRows, calibration_rows
from ruyi_rl.stages.compression_scores import measured, problems, unchanged
from ruyi_rl.stages.factorisation import factorise
from ruyi_rl.stages.held_out import release_memory, told
from ruyi_rl.stages.inputs import load_tokenizer
from ruyi_rl.stages.recovery import recover, recovery_arguments
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.finite_updates import skipped_updates
from ruyi_rl.validation.expansion import compressed_exit
from ruyi_rl.validation.known_family import described_family


def run(context: StageContext) -> dict[str, Any]:
    """Compresses the exit, recovers it where that is asked for, and measures it in between."""
    config, options = context.config, context.config.compress
    exit = exit_to_compress(context.input, options)
    tokenizer = load_tokenizer(context.input)
    rows = calibration_rows(config, tokenizer)
    judged = problems(context)
    if options.recover_steps:
        recovery_arguments(context, rows.training)  # refuses bad values before minutes of compressing and measuring
    if not context.kept("factorised"):
        say_rows(context, rows)
        factorised = factorise(context, exit, tokenizer, rows)
        context.mirror()
        context.keep("factorised", factorised)
        release_memory()
    found = context.kept("factorised")
    show(context, exit, found)
    scores = {}
    if judged is not None:
        scores["before"] = measured(context, context.input, judged, tokenizer, exit, "before")
        scores["compressed"] = measured(context, context.folder, judged, tokenizer, exit, "compressed")
    if options.recover_steps:
        if not context.kept("recovered"):
            recover(context, exit, tokenizer, rows.training)
            context.keep("recovered", True)
        if judged is not None:
            scores["after"] = measured(context, context.folder, judged, tokenizer, exit, "after")
        if ranks.rank() == 0:
            steps = read_metrics(context.folder / "metrics.jsonl")
            title = f"{config.name}: recovery"
            draw_curves(steps, [exit], ["loss", "agreement"], context.folder / "curves.png", title)
    elif judged is not None:
        scores["after"] = scores["compressed"]
    return summary(context, exit, found, {when: score for when, score in scores.items() if score["exits"]})


def exit_to_compress(folder: Path, options: CompressOptions) -> str:
    """`compress.exit`, or the one exit that is expanded and not compressed: what a family on the hub is, was not known
    before.

    Raises:
        Refusal: no such exit, none or several to choose, or one that is not expanded or is compressed already.
    """
    family = described_family(FamilyConfig.from_pretrained(str(folder)).to_dict())
    if not family.expanded:
        raise Refusal("compress.exit", f"no exit in {folder} is expanded", "a family that stage=expand has made")
    return compressed_exit(options, family)


def say_rows(context: StageContext, rows: CalibrationRows) -> None:
    """One line on the rows."""
    options, lengths = context.config.compress, rows.lengths
    left_out = (
        f"; {lengths.left_out:,} rows longer than {options.max_length} tokens left out" if lengths.left_out else ""
    )
    fewer = (
        f" ({options.calibration_rows:,} were asked for)" if len(rows.calibration) < options.calibration_rows else ""
    )
    context.console.print(
        f"calibration: {len(rows.calibration):,} rows{fewer} of {sum(map(len, rows.calibration)):,} tokens, "
        f"{len(rows.held_out):,} others held out{left_out}",
        markup=False,
        soft_wrap=True,
    )


def show(context: StageContext, exit: str, found: dict[str, Any]) -> None:
    """Prints the tables of the matrices, and writes the first as `matrices.json`."""
    method = context.config.compress.method
    for notice in found["notices"]:
        context.console.print(notice, markup=False, style="yellow", soft_wrap=True)
    context.console.print(matrix_table(found["matrices"], exit, method))
    context.console.print(method_table(found["losses"], method))
    if ranks.rank() == 0:
        write_json(context.folder / "matrices.json", found["matrices"])


def summary(
    context: StageContext, exit: str, found: dict[str, Any], scores: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What the stage has shown."""
    options = context.config.compress
    before, after = (stored_family(folder).size(exit) for folder in (context.input, context.folder))
    values: dict[str, Any] = {
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "bytes_before": before.bytes,
        "bytes_after": after.bytes,
    }
    for when, made in scores.items():
        values |= told(made["exits"][exit], when)
    shown: dict[str, Any] = {
        "exit": exit,
        "method": options.method,
        "ratio": options.ratio,
        "recover_steps": options.recover_steps,
        "exits": {exit: values},
        "matrices": found["matrices"],
        "losses": found["losses"],
        "tokens": found["tokens"],
        "skipped_updates": skipped_updates(read_metrics(context.folder / "metrics.jsonl")),
        "warnings": found["notices"],
    }
    if "before" in scores and "after" in scores:
        for key, when in (("retained_without_recovery", "compressed"), ("retained", "after")):
            shown[key] = _retained(values["pass_before"], values[f"pass_{when}"])
    if "after" in scores:
        shown["held_out"] = {**scores["after"], "exits": {**unchanged(context), **scores["after"]["exits"]}}
    return shown


def _retained(before: float, after: float) -> float | None:
    return after / before if before > 0 and math.isfinite(after) else None
