"""What `stage=compress` computes: the inputs of an exit's matrices on all ranks, their factors on one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.failure import StageFailed
from ruyi_rl.family.calibration import Calibration, collect_grams, compressed_modules, module_group
from ruyi_rl.family.factorisation import Compressed, MatrixReport, compress_matrices
from ruyi_rl.family.options import COMPRESSION_METHODS
from ruyi_rl.family.truncation import Factors, activation_loss
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.stages.calibration_rows import CalibrationRows, token_batches
from ruyi_rl.stages.factor_files import FACTORS, save_compressed, save_factors
from ruyi_rl.stages.inputs import device, load_family
from ruyi_rl.watchdog import watched


def factorise(
    context: StageContext, exit: str, tokenizer: PreTrainedTokenizerBase, rows: CalibrationRows
) -> dict[str, Any]:
    """Compresses the exit and saves the family, its tokenizer and the factors in the stage's folder.

    Returns:
        On every rank `matrices` (a row each, see `matrix_row`), `losses` (see `total_losses`), `tokens` and `notices`.

    Raises:
        StageFailed: NaN or infinity in the family or in what it makes of the rows.
    """
    options = context.config.compress
    family = load_family(context.input, context.config.model).eval()
    modules = compressed_modules(family.config, exit)
    branch = family.branch(exit, copy=False).to(device())

    def measured(part: Sequence[Sequence[int]], description: str) -> Calibration:
        batches = token_batches(_share(part), options.batch_size, tokenizer.pad_token_id)
        found, problem = None, None
        with watched(context), ProgressLine(context.console, description, len(batches)) as line:
            context.heart.enter(description)
            try:
                found = collect_grams(branch, list(modules), batches, _counting(line, context.heart.beat))
            except ValueError as error:
                problem = str(error)
        # What only one rank has seen must end all of them.
        _fail_together(problem)
        return _summed(found, shared=len(part) >= ranks.world_size())

    calibration = measured(rows.calibration, "calibration")
    held_out = measured(rows.held_out, "held-out inputs")

    def work() -> tuple[dict[str, Any] | None, str | None]:
        try:
            compressed, notices = _compressed(context, branch, modules, calibration, held_out)
        except ValueError as error:
            return None, str(error)
        reports = [
            matrix_row(
                found, _held_out_losses(branch.get_submodule(stock).weight, found.factors, held_out.grams[stock])
            )
            for stock, found in zip(modules, compressed.values())
        ]
        factors = {name: found.factors.to("cpu") for name, found in compressed.items()}
        save_factors(context.folder / FACTORS, factors)
        save_compressed(family, tokenizer, exit, factors, context.folder)
        tokens = {"calibration": calibration.tokens, "held_out": held_out.tokens}
        return {"matrices": reports, "losses": total_losses(reports), "tokens": tokens, "notices": notices}, None

    result, problem = ranks.on_rank_zero(work)
    _fail_together(problem)
    return result


def _compressed(
    context: StageContext,
    branch: PreTrainedModel,
    modules: Mapping[str, str],
    calibration: Calibration,
    held_out: Calibration,
) -> tuple[dict[str, Compressed], list[str]]:
    """Factors and report of each matrix by its name in the family, and what is to be said of the calibration."""
    options = context.config.compress
    groups = {own: module_group(stock) for stock, own in modules.items()}
    with (
        ProgressLine(context.console, "factorising", len(set(groups.values()))) as line,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        found = compress_matrices(
            weights={own: branch.get_submodule(stock).weight for stock, own in modules.items()},
            grams={own: calibration.grams[stock] for stock, own in modules.items()},
            groups=groups,
            ratio=options.ratio,
            method=options.method,
            progress=_counting(line, context.heart.beat),
            tokens=calibration.tokens,
            compare=True,
            held_out={own: held_out.grams[stock] for stock, own in modules.items()},
        )
    notices = [str(warning.message) for warning in caught if "calibration" in str(warning.message)]
    shifted = sum(compressed.report.shift > 0 for compressed in found.values())
    if shifted:
        notices.append(
            f"the calibration's inputs of {shifted} of {len(found)} matrices do not reach all directions: their Gram "
            "matrices were shifted"
        )
    return found, notices


def matrix_row(found: Compressed, held_out: tuple[float, float]) -> dict[str, Any]:
    """A matrix of the summary and of `matrices.json`: the fields of `MatrixReport`, and

    `removed`, the share of its parameters that is gone; `relative`, achieved loss over ‖WX‖; `held_out_achieved` and
    `held_out_norm`, likewise on the held-out rows, and `held_out_relative`.
    """
    report: MatrixReport = found.report
    loss, norm = held_out
    return {
        **asdict(report),
        "removed": report.removed,
        "relative": _share_of(report.achieved, report.norm),
        "held_out_achieved": loss,
        "held_out_norm": norm,
        "held_out_relative": _share_of(loss, norm),
    }


def total_losses(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Method -> loss of all matrices together, sqrt(ΣL²), on the calibration's rows and on the held-out ones.

    `…_relative` are these over sqrt(Σ‖WX‖²).
    """
    norms = {"calibration": math.hypot(*(row["norm"] for row in reports))}
    norms["held_out"] = math.hypot(*(row["held_out_norm"] for row in reports))
    totals: dict[str, dict[str, float]] = {}
    for method in COMPRESSION_METHODS:
        totals[method] = {}
        for rows, key in (("calibration", "losses"), ("held_out", "held_out")):
            loss = math.hypot(*(row[key][method] for row in reports))
            totals[method] |= {rows: loss, f"{rows}_relative": _share_of(loss, norms[rows])}
    return totals


def _share(rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """This rank's; of fewer rows than ranks each takes all."""
    return rows[ranks.rank() :: ranks.world_size()] if len(rows) >= ranks.world_size() else rows


def _summed(found: Calibration, shared: bool) -> Calibration:
    """Over the ranks, where each has seen other rows."""
    if not shared or ranks.world_size() == 1:
        return found
    # Modules with the same inputs hold the same tensor, which is to be summed once.
    for gram in {id(gram): gram for gram in found.grams.values()}.values():
        torch.distributed.all_reduce(gram)
    return Calibration(found.grams, sum(ranks.gathered(found.tokens)))


def _fail_together(problem: str | None) -> None:
    problems = [other for other in ranks.gathered(problem) if other]
    if problems:
        raise StageFailed(f"the exit cannot be compressed: {problems[0]}")


def _held_out_losses(weight: torch.Tensor, factors: Factors, gram: torch.Tensor) -> tuple[float, float]:
    """‖WX - W'X‖_F and ‖WX‖_F of held-out inputs."""
    nothing = Factors(weight.new_zeros(weight.shape[0], 1), weight.new_zeros(1, weight.shape[1]))
    return activation_loss(weight, factors, gram), activation_loss(weight, nothing, gram)


def _share_of(loss: float, norm: float) -> float:
    return loss / norm if norm > 0 else 0.0


def _counting(line: ProgressLine, beat: Callable[[], None]) -> Callable[[str], None]:
    """Shows each line of text that it is given as one more step, and beats."""
    done = 0

    def show(text: str) -> None:
        nonlocal done
        done += 1
        beat()
        line.update(done, text.removeprefix("calibration: ").removeprefix("factorised "))

    return show
