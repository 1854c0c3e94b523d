"""What the benches of training find: rows of a table, their print, and the proof that both sides compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench_arithmetic import Work
from bench_timing import Spread

PHASES = {
    "old log-probs": ("old",),
    "forward + backward": ("forward", "backward"),
    "optimiser": ("optimiser",),
    "whole step": ("old", "forward", "backward", "optimiser"),
}
"""What is reported -> the timed parts that it is the sum of."""
TOLERANCES = {"float32": (1e-5, 1e-4), "bfloat16": (0.25, 0.1)}
"""dtype -> of log-probs, absolute; of a parameter's gradient, relative."""


@dataclass(frozen=True)
class Equality:
    """How far our results are from TRL's."""

    case: str
    log_probs: float
    """Largest difference over all tokens."""
    gradients: float
    """Largest ‖ours - theirs‖ / ‖theirs‖ over all parameters."""
    worst: str
    """The parameter where that is."""

    def holds(self, dtype: str) -> bool:
        log_probs, gradients = TOLERANCES[dtype]
        # Written so that NaN fails.
        return self.log_probs <= log_probs and self.gradients <= gradients

    def __str__(self) -> str:
        return (
            f"{self.case}: log-probs within {self.log_probs:.1e}, gradients within {self.gradients:.1e} ({self.worst})"
        )


@dataclass(frozen=True)
class Row:
    """One phase of one case."""

    case: str
    phase: str
    ours: Spread
    """Seconds."""
    trl: Spread
    ratio: Spread
    """TRL's seconds over ours, in the same round."""
    bound: float | None
    """TRL's operations, as it runs on this device, over the least that a family needs; None: not arithmetic."""
    bound_scored: float | None
    """The same where TRL's heads ran on scored tokens only."""
    share: float | None
    """The median ratio over `bound`."""
    tokens_per_second: float
    """Ours: scored tokens."""
    trl_tokens_per_second: float
    tflops: float | None
    """Ours: needed operations (10^12) a second."""
    trl_tflops: float | None
    mfu: float | None = None
    """Ours: share of the device's peak."""
    trl_mfu: float | None = None
    least_ratio: float | None = None
    """What is wanted."""
    least_share: float | None = None


def rows_of_phases(
    case: str,
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    tokens: int,
    work: tuple[Work, Work, Work],
    peak_tflops: float | None,
    wanted: Mapping[str, tuple[float | None, float | None]],
) -> list[Row]:
    """The table's rows of a case.

    Args:
        seconds: contestant (`ours`, `TRL`) -> part -> seconds of each round.
        tokens: scored in a step.
        work: forward passes of TRL as it runs, of TRL with heads on scored tokens only, and of a family.
        peak_tflops: of the device; None: no MFU.
        wanted: phase -> least ratio and least share of the bound.
    """
    found = []
    for phase, parts in PHASES.items():
        us, them = (
            [sum(values) for values in zip(*(seconds[name][part] for part in parts))] for name in ("ours", "TRL")
        )
        if max(us) == 0:
            continue
        run, scored, needed = (operations(part, parts, max(seconds["ours"]["old"]) > 0) for part in work)
        ratio = Spread.of([b / a for a, b in zip(us, them, strict=True)])
        ours, trl = Spread.of(us), Spread.of(them)
        rates = [flops / seconds.median / 1e12 if flops else None for flops, seconds in ((needed, ours), (run, trl))]
        found.append(
            Row(
                case,
                phase,
                ours,
                trl,
                ratio,
                bound=run / needed if needed else None,
                bound_scored=scored / needed if needed else None,
                share=ratio.median * needed / run if needed else None,
                tokens_per_second=tokens / ours.median,
                trl_tokens_per_second=tokens / trl.median,
                tflops=rates[0],
                trl_tflops=rates[1],
                mfu=rates[0] / peak_tflops if peak_tflops and rates[0] else None,
                trl_mfu=rates[1] / peak_tflops if peak_tflops and rates[1] else None,
                least_ratio=wanted.get(phase, (None, None))[0],
                least_share=wanted.get(phase, (None, None))[1],
            )
        )
    return found


def operations(work: Work, parts: Sequence[str], old: bool) -> float:
    """Of the timed parts; 0 for the optimiser's."""
    each = {"old": work.forward * old, "forward": work.forward, "backward": work.backward, "optimiser": 0.0}
    return sum(each[part] for part in parts)


def show(rows: Sequence[Row]) -> None:
    print(
        f"{'case':28} {'phase':18} {'ours, s':>22} {'TRL, s':>22} {'ratio':>22} {'bound':>6} {'share':>6} "
        f"{'tokens/s':>8} {'TRL':>7} {'TFLOP/s':>8} {'TRL':>7}"
    )
    for row in rows:
        line = (
            f"{row.case:28} {row.phase:18} {row.ours!s:>22} {row.trl!s:>22} {row.ratio!s:>22} "
            f"{or_none(row.bound, '6.2f')} {or_none(row.share, '6.1%')} "
            f"{row.tokens_per_second:8.0f} {row.trl_tokens_per_second:7.0f} "
            f"{or_none(row.tflops, '8.3f')} {or_none(row.trl_tflops, '7.3f')}"
        )
        if row.mfu is not None:
            line += f"  MFU {row.mfu:.1%}, TRL {row.trl_mfu:.1%}"
        print(f"{line}  {verdict(row)}".rstrip(), flush=True)


def verdict(row: Row) -> str:
    """What is wanted of the row, and whether it is reached."""
    wanted = []
    if row.least_ratio is not None:
        wanted.append((f"ratio ≥ {row.least_ratio:.2f}", row.ratio.median >= row.least_ratio))
    if row.least_share is not None:
        wanted.append((f"share ≥ {row.least_share:.0%}", row.share >= row.least_share))
    return ", ".join(f"{text} {'reached' if reached else 'MISSED'}" for text, reached in wanted)


def or_none(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else " " * int(form.split(".")[0])
