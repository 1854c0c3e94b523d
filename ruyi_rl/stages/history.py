"""What each stage of a run made of each exit: its branch's size on disk, and its pass rate where one is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.report.history import RECOVERED
from ruyi_rl.stages.lineage import Ancestor, ancestors


@dataclass(frozen=True)
class HistoryRow:
    """One exit after one stage."""

    stage: str
    exit: str
    layers: int
    parameters: int
    """Of the exit's branch, as stored: factors count as factors."""
    bytes: int
    """Of the same tensors on disk."""
    unchanged: bool
    """Whether the branch computes the same as in the row before."""
    pass_rate: float | None
    """Held-out pass rate; None: the branch was not measured as it is here."""
    standard_error: float | None
    greedy: float | None
    measured_by: str | None
    """The stage whose measurement it is: its own, or another's on the same function."""
    comparable: bool
    """Whether it was made in the same way as the run's last measurement."""


@dataclass(frozen=True)
class Measurement:
    """A pass rate of one exit."""

    by: str
    """The stage that made it; `before grpo` where it did so on its input."""
    place: int
    """Index of the measured family among the run's."""
    how: str
    """Hash of all that decides it but the family."""
    score: Mapping[str, Any]
    """`pass_rate`, `standard_error`, `greedy`."""


def history(folder: Path, held_out: Mapping[str, Any] | None) -> dict[str, Any]:
    """The rows of the family in `folder` and of all that led to it.

    Args:
        folder: the last family.
        held_out: what `stage=eval` knows of it, see `ruyi_rl.stages.held_out.measure`; None: nothing.

    Returns:
        `{"expanded": exits with new blocks, "measurement": hash that comparable rows share, "stopped": why older
        families are left out, or None, "rows": [HistoryRow as a dict, by exit and then by stage]}`.

    Raises:
        ValueError: `folder` holds no family as safetensors.
    """
    stages, stopped = ancestors(folder)
    last = stages[-1].family.config
    found = {exit: measurements(stages, exit, held_out) for exit in last.exits}
    latest = max((m for each in found.values() for m in each), key=lambda m: m.place, default=None)
    reference = held_out["measurement"] if held_out else latest.how if latest else None
    return {
        "expanded": [exit for exit, blocks in last.expansions.items() if blocks],
        "measurement": reference,
        "stopped": stopped,
        "rows": [asdict(row) for exit in last.exits for row in _rows(stages, exit, found[exit], reference)],
    }


def measurements(stages: Sequence[Ancestor], exit: str, held_out: Mapping[str, Any] | None) -> list[Measurement]:
    """Every measurement of one exit, in the order of the families.

    A stage that need not measure hands on what it was given. Such a copy has the same wall time to the last digit and
    is left out here: what carries over is told from the weights.
    """
    found: list[Measurement] = []

    def take(by: str, place: int, how: str, score: Mapping[str, Any]) -> None:
        if not any(how == other.how and score == other.score for other in found):
            found.append(Measurement(by, place, how, score))

    closing: Mapping[str, Any] = {}
    for place, stage in enumerate(stages):
        given, closing = closing, stage.summary.get("held_out") or {}
        how = closing.get("measurement")
        before = _score(stage, exit, "before")
        # The stage took over what stands in its input's summary, if it was measured in the same way.
        reused = given.get("measurement") == how and exit in given.get("exits", {})
        if place and how and before and not reused:
            take(f"before {stage.name}", place - 1, how, before)
        if exit in closing.get("exits", {}):
            take(stage.name, place, how, closing["exits"][exit])
    if held_out and exit in held_out["exits"]:
        take("eval", len(stages) - 1, held_out["measurement"], held_out["exits"][exit])
    return found


def _rows(
    stages: Sequence[Ancestor], exit: str, found: Sequence[Measurement], reference: str | None
) -> list[HistoryRow]:
    functions = [0]  # families of one number compute the same at this exit
    for stage in stages[1:]:
        functions.append(functions[-1] + (exit not in stage.unchanged))
    rows = []
    for place, stage in enumerate(stages):
        if exit not in stage.family.config.exits:
            continue
        name = stage.name
        if stage.summary.get("recover_steps") and (score := _score(stage, exit, "compressed")):
            how = (stage.summary.get("held_out") or {}).get("measurement")
            rows.append(_row(name, stage, exit, Measurement(name, place, how, score), reference))
            name += RECOVERED
        fitting = [m for m in found if functions[m.place] == functions[place]]
        # Comparable ones first, then the stage's own, then the nearest before it.
        order = [(m.how != reference, m.by != stage.name, m.place > place, abs(m.place - place)) for m in fitting]
        best = fitting[order.index(min(order))] if fitting else None
        rows.append(_row(name, stage, exit, best, reference))
    return rows


def _row(name: str, stage: Ancestor, exit: str, measured: Measurement | None, reference: str | None) -> HistoryRow:
    size, score = stage.family.size(exit), measured.score if measured else {}
    return HistoryRow(
        stage=name,
        exit=exit,
        layers=size.layers,
        parameters=size.parameters,
        bytes=size.bytes,
        unchanged=exit in stage.unchanged,
        **{key: score.get(key) for key in ("pass_rate", "standard_error", "greedy")},
        measured_by=measured.by if measured else None,
        comparable=measured is not None and measured.how == reference,
    )


def _score(stage: Ancestor, exit: str, when: str) -> dict[str, Any] | None:
    """The score of one moment of a stage in its summary; None where it has none."""
    values = stage.summary.get("exits", {}).get(exit, {})
    if values.get(f"pass_{when}") is None:
        return None
    return {
        "pass_rate": values[f"pass_{when}"],
        "standard_error": values.get(f"pass_{when}_standard_error"),
        "greedy": values.get(f"greedy_{when}"),
    }
