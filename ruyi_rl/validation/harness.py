"""`eval.harness`: what can be known to fail before the harness, or torch, is loaded."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from ruyi_rl.harness.options import BACKENDS, HarnessOptions
from ruyi_rl.harness.tasks import REMEDY, check_tasks, harness_problem
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.validation.values import require, require_choice

OWNED = {
    "model": "each exit's branch is the model",
    "model_args": "use eval.harness.model",
    "tasks": "use eval.harness.tasks",
    "num_fewshot": "use eval.harness.num_fewshot",
    "batch_size": "use eval.harness.batch_size",
    "max_batch_size": "use eval.harness.batch_size",
    "limit": "use eval.harness.limit",
    "apply_chat_template": "use eval.harness.chat_template",
    "task_manager": "use eval.harness.include_path",
    "device": "each rank measures on its own device",
    **dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), "the run's seed decides"
    ),
}
"""Arguments of `simple_evaluate` that `eval.harness.arguments` may not set -> why, or what to set instead."""


def check_harness(options: HarnessOptions, world_size: int) -> None:
    """Refuse a harness that is missing, tasks that it does not know and values that it cannot run with.

    Args:
        world_size: ranks of the run.

    Raises:
        Refusal: the first thing that is wrong.
    """
    key = "eval.harness"
    if not options.tasks:
        return
    if problem := harness_problem():
        raise Refusal(f"{key}.tasks", problem, REMEDY)
    require_choice(f"{key}.backend", options.backend, BACKENDS)
    if options.backend == "vllm":
        if problem := vllm_problem():
            raise Refusal(f"{key}.backend", f"vllm cannot be used: {problem}", "hf")
        if world_size > 1:
            problem = f"one engine cannot be shared by {world_size} ranks"
            raise Refusal(f"{key}.backend", problem, "hf; or one rank with eval.harness.model.tensor_parallel_size")
    for name in ("num_fewshot", "batch_size", "limit"):
        value, least = getattr(options, name), 1 if name == "batch_size" else 0
        allowed = "0 or more" if name == "num_fewshot" else "above 0"
        right = value is None or value >= least and (name != "limit" or value > 0)
        require(f"{key}.{name}", value, right, f"{allowed}, or null")
    if options.limit is not None and options.limit > 1:
        require(f"{key}.limit", options.limit, options.limit == int(options.limit), "a whole number, or below 1")
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise Refusal(f"{key}.include_path", f"no folder {options.include_path}", "a folder with task files (YAML)")
    known = harness_arguments()
    for name in options.arguments:
        if name in OWNED:
            raise Refusal(f"{key}.arguments.{name}", "cannot be set", OWNED[name])
        if name not in known:
            problem = "the harness's simple_evaluate has no such argument"
            raise Refusal(f"{key}.arguments.{name}", problem, nearest(name, set(known) - OWNED.keys()))
    check_tasks(options.tasks, options.include_path)


@functools.cache
def harness_arguments() -> tuple[str, ...]:
    """Arguments of the installed harness's `simple_evaluate`, from its source: importing it would import torch."""
    folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    tree = ast.parse((folder / "evaluator.py").read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "simple_evaluate"]
    return tuple(argument.arg for argument in (*function.args.args, *function.args.kwonlyargs))
