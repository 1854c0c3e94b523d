"""Keeps a run's report up to date while the run goes on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ruyi_rl.report.html.page import write_report
from ruyi_rl.run_folder import REPORT, write_text

REFRESH_SECONDS = 60.0
"""Least time between two reports of a training."""
DEAREST = 0.005
"""Largest share of a training's time that its reports may take."""
ERROR_FILE = "report-error.txt"


def keep_report(run: Path, say: Callable[[str], None]) -> None:
    """Writes the report of a run. What goes wrong with it is said, kept in `report-error.txt`, and ends nothing.

    Args:
        run: the run's folder.
        say: called with a line for the user.
    """
    try:
        write_report(run)
        (run / ERROR_FILE).unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001  the report is about the run, not of it: its faults must not cost a stage
        say(f"{fault(run, error)}. The run is as it was; stage=report tries again")


def fault(run: Path, error: Exception) -> str:
    """Keeps what went wrong with a report in `report-error.txt`; returns it on one line."""
    with suppress(OSError):  # as on a full disk, which is told
        write_text(run / ERROR_FILE, "".join(traceback.format_exception(error)))
    told = " ".join("".join(traceback.format_exception_only(error)).split())
    return f"{run / REPORT} could not be written: {told}"


class Upkeep:
    """Refreshes the report of a training now and then.

    Args:
        run, say: as for `keep_report`.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, run: Path, say: Callable[[str], None], now: Callable[[], float] = time.monotonic):
        self.run, self.say, self._now = run, say, now
        self._next = now() + REFRESH_SECONDS

    def refresh(self) -> None:
        """Writes the report where it is time to."""
        begun = self._now()
        if begun < self._next:
            return
        keep_report(self.run, self.say)
        ended = self._now()
        self._next = ended + max(REFRESH_SECONDS, (ended - begun) / DEAREST)
