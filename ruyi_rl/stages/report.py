"""`stage=report`: the page of a run, whatever has become of it; nothing else in its folder changes."""

from __future__ import annotations

from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.report.console import run_console
from ruyi_rl.report.html import FILE, write_report


def run(config: RunConfig) -> None:
    """Writes the report and prints its path.

    Raises:
        StageFailed: the run's folder does not take it.
    """
    folder = Path(config.run_dir)
    try:
        path = write_report(folder)
    except OSError as error:
        raise StageFailed(f"{folder / FILE} could not be written: {error.strerror}") from error
    run_console().print(str(path), markup=False, highlight=False, soft_wrap=True)
