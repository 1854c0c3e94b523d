"""What the reward functions failed on, by stage, function and kind."""

from __future__ import annotations

from collections import Counter

from ruyi_rl.report.html.records import RunRecord, StageRecord, json_lines
from ruyi_rl.report.html.samples import visible
from ruyi_rl.report.html.table import Cell, ShownTable, table
from ruyi_rl.rewards.failures import FILE

MESSAGE = 200
"""Characters of a message that are shown."""


def failure_table(run: RunRecord) -> ShownTable | None:
    """One row a stage, function and kind, with the first message; None where nothing failed."""
    rows = [row for record in run.stages if FILE in record.files for row in _rows(run, record)]
    if not rows:
        return None
    note = "Such a completion is left out of its group's baseline and counted; it is never a silent 0."
    return table("Completions that a reward function failed on", rows, note=note)


def _rows(run: RunRecord, record: StageRecord) -> list[dict[str, Cell | str]]:
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for line in json_lines(run.path / record.name / FILE):
        for function, kinds in (line.get("failures") or {}).items():
            for kind, number in kinds.items():
                counts[function, kind] += number
        if "message" in line:
            first.setdefault((line["function"], line["kind"]), str(line["message"]))
    return [
        {
            "stage": record.name,
            "function": function,
            "kind": kind,
            "completions": f"{number:,}",
            "first message": visible(first.get((function, kind), ""))[0][:MESSAGE],
        }
        for (function, kind), number in counts.most_common()
    ]
