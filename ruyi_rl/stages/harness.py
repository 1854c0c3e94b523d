"""The part of `stage=eval` that lm-evaluation-harness measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ruyi_rl import ranks
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

FILE = "harness.json"
"""File in the stage's folder: exit -> the harness's own results."""


def harness_scores(context: StageContext, exits: Sequence[str]) -> dict[str, Any] | None:
    """Task -> `{"metric", "exits": {exit: {"value", "standard_error", …}}}`; None where no task is asked for.

    One exit after the other; those that an earlier attempt measured are kept. All ranks call it.

    Raises:
        Refusal: a task whose data cannot be loaded, or chats without a template.
    """
    options = context.config.eval.harness
    if not options.tasks:
        return None
    kept = {exit: found for exit in exits if (found := context.kept(_key(context, exit))) is not None}
    if missing := [exit for exit in exits if exit not in kept]:
        with watched(context):
            kept |= _measured(context, missing)
    return by_task({exit: kept[exit] for exit in exits})


def published_beside(summary: Mapping[str, Any], config: FamilyConfig) -> dict[str, Any]:
    """`{"published": …, "published_source": …}` where the family is one of those that have reported scores, and
    something was measured that has one; else {}.

    Args:
        summary: of `stage=eval`.
    """
    published = published_scores()
    found = beside_published(summary, published.models_of(config.hidden_size, config.exits), published)
    return {"published": found, "published_source": published.source} if found else {}


def _measured(context: StageContext, exits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Exit -> its scores, on every rank."""
    from ruyi_rl.harness.language_models import Reporter
    from ruyi_rl.harness.measuring import chosen_backend, load_tasks, measure_exit, shared_out

    options, seed = context.config.eval.harness, context.config.seed
    backend, why = chosen_backend(options, lambda: vllm_problem() or import_problem())
    context.console.print(
        f"lm-evaluation-harness by {backend}" + (f", which auto took: {why}" if why else ""), soft_wrap=True
    )
    context.heart.enter("loading the harness's tasks")
    with context.console.status("loading the harness's tasks"):
        tasks = load_tasks(options)
    sharing, found = shared_out(tasks, options.limit), {}
    for exit in exits:
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
        context.keep(_key(context, exit), found[exit])
    return found


def _keep_results(context: StageContext, exit: str, results: dict[str, Any]) -> None:
    file = context.folder / FILE
    before = json.loads(file.read_text()) if file.is_file() else {}
    write_json(file, before | {exit: results})


def _key(context: StageContext, exit: str) -> str:
    """What scores are kept under: others for all that decides them."""
    options = flat({"eval": {"harness": asdict(context.config.eval.harness)}, "seed": context.config.seed})
    return f"harness/{exit}/{config_hash({key: value for key, value in options.items() if decides(key)})}"
