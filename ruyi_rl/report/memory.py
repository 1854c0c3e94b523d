"""The memory estimate as rows and as words. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from ruyi_rl.training.memory_estimate import MemoryEstimate

USUAL_GPUS = (16, 24, 40, 48, 80, 96, 141, 192)
"""Gigabytes of usual GPUs, of 10^9 bytes."""
ROOM = 0.95
"""Share of a device that an estimate may take and still be said to fit."""


@dataclass(frozen=True)
class MemoryReport:
    """An estimate and what it is held against."""

    estimate: MemoryEstimate
    device: str
    """`cuda` or `cpu`."""
    bytes: int | None
    """Memory of the device for this rank; None: not known."""
    checkpointing: bool
    """Of gradients."""
    stage: str = "<stage>"
    """Whose block the remedies name."""
    assumed: bool = False
    """Whether all rows are taken to be as long as they may be; else as the data's longest."""

    @property
    def fits(self) -> bool | None:
        """Whether the estimate leaves some room; None where the device is not known."""
        return None if self.bytes is None else self.estimate.peak <= ROOM * self.bytes


def memory_rows(report: MemoryReport) -> Iterator[tuple[str, str, str]]:
    """(name, size, what it is) of each part, then of the peak."""
    each, state = report.estimate, report.estimate.state
    kinds = {
        "weights": state.weights,
        "gradients": state.gradients,
        "float32 masters": state.masters,
        "AdamW": state.moments,
    }
    parts = ", ".join(f"{name} {byte_size(size)}" for name, size in kinds.items() if size)
    place = " on the CPU" if each.offloaded else ""
    yield "memory of a rank", byte_size(state.total), parts + place
    kept = "each layer's input, and one layer computed again" if report.checkpointing else "of all layers"
    yield "+ activations, at most", byte_size(each.activations), kept
    yield "+ head", byte_size(each.head), "a tile of logits, and one head's gradients in float32"
    if each.copies:
        yield "+ copies of weights", byte_size(each.copies), "gathered, or in 16 bits, for a pass"
    if each.engines.awake:
        gradients = f"{byte_size(each.standing)} of gradients" if each.standing else "no gradients"
        what = "all the time" if each.engines.asleep else f"while completions are made; {gradients} then"
        if report.device == "cuda" and report.bytes is None:
            what = f"weights, {what}; caches take what rollout.gpu_memory_utilization leaves"
        yield "+ rollouts", byte_size(each.engines.awake), what
    moment = "generating" if each.engines.awake and each.generating > each.training else "training"
    how = "an estimate for rows as long as they may be" if report.assumed else "an estimate"
    yield "most on a rank, about", byte_size(each.peak), f"while {moment}; {how}; {_held_against(report)}"


def memory_line(stage: str, report: MemoryReport) -> str:
    """An estimate that is no cause for concern: `sft: at most about 1.3 GB on a rank; 67 GB are there`."""
    rows = ", if rows were as long as they may be" if report.assumed else ""
    return f"{stage}: at most about {byte_size(report.estimate.peak)} on a rank{rows}; {_held_against(report)}"


def memory_warning(report: MemoryReport) -> str | None:
    """What to change where the estimate does not fit; None where it fits, or the device is not known."""
    if report.fits is not False:
        return None
    return (
        f"about {byte_size(report.estimate.peak)} are needed on a rank, and "
        f"{'the GPU has' if report.device == 'cuda' else 'there are'} {byte_size(report.bytes)}: {remedies(report)}"
    )


def remedies(report: MemoryReport) -> str:
    """What takes less, the largest part first."""
    each = report.estimate
    state = 0 if each.offloaded else each.state.total
    generating = each.engines.awake and each.generating > each.training
    budget = ", or a smaller grpo.token_budget" if report.stage == "grpo" else ""
    words = {
        "a higher deepspeed=zero1 … zero3_offload, or more ranks": state,
        f"{report.stage}.trainer.gradient_checkpointing=true": 0 if report.checkpointing else each.activations,
        f"fewer rows in {report.stage}.trainer.per_device_train_batch_size{budget}": each.activations,
        "rollout.tensor_parallel, or a smaller rollout.gpu_memory_utilization": each.engines.awake if generating else 0,
        "rollout.sleep=true": 0 if generating else each.engines.asleep if report.device == "cuda" else 0,
    }
    ranked = sorted((word for word, size in words.items() if size), key=words.get, reverse=True)
    return "; ".join(ranked) or "a larger device"


def memory_table(report: MemoryReport) -> Table:
    """The rows of an estimate by themselves."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in memory_rows(report):
        table.add_row(*row)
    return table


def _held_against(report: MemoryReport) -> str:
    if report.bytes is not None:
        return f"{byte_size(report.bytes)} {'are there' if report.fits else 'are not enough'}"
    if report.device == "cpu":
        return "of the CPU's memory"
    enough = next((size for size in USUAL_GPUS if report.estimate.peak <= ROOM * size * 10**9), None)
    return "more than any usual GPU has" if enough is None else f"fits a GPU of {enough} GB"


def byte_size(size: int) -> str:
    """`6.4 MB`: three digits and a decimal unit."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
