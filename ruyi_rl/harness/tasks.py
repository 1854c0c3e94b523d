"""Which tasks the harness knows. Importing this module imports neither torch nor the harness."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.report.published import published_scores

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

REMEDY = "pip install 'ruyi_rl[harness]'"


def harness_problem() -> str | None:
    """Why the harness cannot be used, in one line; None if it can."""
    return None if importlib.util.find_spec("lm_eval") else "lm-evaluation-harness is not installed"


def task_manager(include_path: str | None, include_defaults: bool = True) -> TaskManager:
    """The harness's index of tasks. It reads the headers of all its own files, which takes seconds; no torch."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=include_path, include_defaults=include_defaults)


def check_tasks(tasks: Sequence[str], include_path: str | None) -> None:
    """Refuse a name that the harness does not know.

    Those of the published tables and of the user's own folder are known at once; for others the whole index is read.

    Raises:
        Refusal: with the nearest name.
    """
    for name in tasks:
        if tasks.count(name) > 1:
            raise Refusal("eval.harness.tasks", f"{name!r} is named twice", "each task once")
    known = set(published_scores().harness_tasks())
    if include_path is not None:
        known |= set(task_manager(include_path, include_defaults=False).all_tasks)
    if missing := [name for name in tasks if name not in known]:
        known |= set(task_manager(include_path).all_tasks)
        if unknown := next((name for name in missing if name not in known), None):
            raise Refusal("eval.harness.tasks", f"the harness has no task {unknown!r}", nearest_task(unknown, known))


def nearest_task(name: str, known: Collection[str]) -> str:
    """`did you mean 'x'?`, or where the list is: it is too long to be shown."""
    # Of 14,000 names, those that could be it: comparing with all of them would take seconds.
    alike = {each for each in known if each[0] == name[0] and abs(len(each) - len(name)) <= len(name) // 4}
    if alike and (hint := nearest(name, alike)).startswith("did you mean"):
        return hint
    return "lm-eval ls tasks lists them; eval.harness.include_path takes a folder of your own"
