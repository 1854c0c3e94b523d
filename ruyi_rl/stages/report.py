"""`stage=report`: the page of a run, whatever has become of it; nothing else in its folder changes."""

from __future__ import annotations

from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.report.console import run_console
from ruyi_rl.report.html import write_report
from ruyi_rl.report.html.upkeep import ERROR_FILE, fault
from ruyi_rl.run_folder import REPORT


def run(config: RunConfig) -> None:
    """Writes the report and prints its path.

    Raises:
        StageFailed: the run's folder does not take it, or holds what no page can be made of.
    """
    folder = Path(config.run_dir)
    try:
        path = write_report(folder)
    except OSError as error:
        raise StageFailed(f"{folder / REPORT} could not be written: {error.strerror}") from error
    except Exception as error:  # as where users' own metrics are beyond all bounds
        raise StageFailed(f"{fault(folder, error)} ({folder / ERROR_FILE} tells where)") from error
    (folder / ERROR_FILE).unlink(missing_ok=True)
    run_console().print(str(path), markup=False, highlight=False, soft_wrap=True)
