"""The part of `stage=eval` that lm-evaluation-harness measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ruyi_rl import ranks
from ruyi_rl.benchmarks.files import files_hash, task_files
from ruyi_rl.execution import StageContext
from ruyi_rl.family import FamilyConfig
from ruyi_rl.harness.results import by_task, exit_scores, kept_results
from ruyi_rl.pipeline import decides
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.report.published import beside_published, published_scores
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.run_folder import config_hash, flat, write_json
from ruyi_rl.stages.held_out import release_memory
from ruyi_rl.watchdog import watched

if TYPE_CHECKING:
    from ruyi_rl.harness.measuring import Asked

FILE = "harness.json"
"""File in the stage's folder: exit -> the harness's own results."""


@dataclass(frozen=True)
class HarnessWork:
    """What `eval.harness` asks for."""

    keys: dict[str, str]
    """Exit -> what its scores are kept under."""
    kept: dict[str, dict[str, Any]]
    """Exit -> the scores that an earlier attempt measured."""
    tasks: Asked | None
    """With their data; None where all exits are measured."""


def harness_work(context: StageContext, exits: Sequence[str]) -> HarnessWork | None:
    """What there is to do, its data loaded: before other things are measured; None where no task is asked for. All
    ranks call it.

    Raises:
        Refusal: a task whose data cannot be loaded.
    """
    options = context.config.eval.harness
    if not options.tasks:
        return None
    files = ranks.on_rank_zero(lambda: files_hash(task_files(context.config)))
    keys = {exit: _key(context, exit, files) for exit in exits}
    kept = {exit: found for exit, key in keys.items() if (found := context.kept(key)) is not None}
    return HarnessWork(keys, kept, _loaded(context) if len(kept) < len(keys) else None)


def harness_scores(context: StageContext, work: HarnessWork | None) -> dict[str, Any] | None:
    """Task -> `{"metric", "exits": {exit: {"value", "standard_error", …}}}`; None where no task is asked for.

    One exit after the other; those that an earlier attempt measured are kept. All ranks call it.

    Raises:
        Refusal: chats without a template.
    """
    if work is None:
        return None
    found = dict(work.kept)
    if work.tasks is not None:
        with watched(context):
            found |= _measured(context, work.tasks, {exit: key for exit, key in work.keys.items() if exit not in found})
    return by_task({exit: found[exit] for exit in work.keys})


def published_beside(summary: Mapping[str, Any], config: FamilyConfig) -> dict[str, Any]:
    """`{"published": …, "published_source": …}` where the family is one of those that have reported scores, and
    something was measured that has one; else {}.

    Args:
        summary: of `stage=eval`.
    """
    published = published_scores()
    found = beside_published(summary, published.models_of(config.hidden_size, config.exits), published)
    return {"published": found, "published_source": published.source} if found else {}


def _loaded(context: StageContext) -> Asked:
    from ruyi_rl.harness.measuring import load_tasks

    context.heart.enter("loading the harness's tasks")
    with context.console.status("loading the harness's tasks"):
        return load_tasks(context.config.eval.harness)


def _measured(context: StageContext, tasks: Asked, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Exit -> its scores, on every rank.

    Args:
        keys: exit -> what its scores are kept under.
    """
    from ruyi_rl.harness.language_models import Reporter
    from ruyi_rl.harness.measuring import chosen_backend, measure_exit, shared_out

    options, seed = context.config.eval.harness, context.config.seed
    backend, why = chosen_backend(options, lambda: vllm_problem() or import_problem())
    context.console.print(
        f"lm-evaluation-harness by {backend}" + (f", which auto took: {why}" if why else ""), soft_wrap=True
    )
    sharing, found = shared_out(tasks, options.limit), {}
    for exit, key in keys.items():
        context.heart.enter(f"harness: {exit}")
        reporter = Reporter(
            context.heart.beat,
            lambda kind, total, exit=exit: ProgressLine(context.console, f"harness, {exit}: {kind}", total, lines=0),
        )
        results = None
        if sharing is not None:
            results = measure_exit(context.input, exit, tasks, options, backend, seed, sharing, reporter)
        release_memory()
        scores = None
        if ranks.rank() == 0:
            scores = exit_scores(results, options.tasks)
            _keep_results(context, exit, kept_results(results))
        found[exit] = ranks.from_rank_zero(scores)
        context.keep(key, found[exit])
    return found


def _keep_results(context: StageContext, exit: str, results: dict[str, Any]) -> None:
    file = context.folder / FILE
    before = json.loads(file.read_text()) if file.is_file() else {}
    write_json(file, before | {exit: results})


def _key(context: StageContext, exit: str, files: str) -> str:
    """What scores are kept under: others for all that decides them.

    Args:
        files: hash of the tasks' own files.
    """
    options = flat({"eval": {"harness": asdict(context.config.eval.harness)}, "seed": context.config.seed})
    decided_by = {key: value for key, value in options.items() if decides(key)}
    decided_by |= {"family": context.manifest.input_hash, "files": files}
    return f"harness/{exit}/{config_hash(decided_by)}"
