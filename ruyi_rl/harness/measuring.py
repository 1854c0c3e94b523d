"""The harness on one exit of a family after the other. Imports the harness and torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval
import lm_eval.evaluator
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ruyi_rl import ranks
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.harness.language_models import BranchLM, Reporter, Sharing, vllm_branch
from ruyi_rl.harness.options import HarnessOptions
from ruyi_rl.harness.tasks import task_manager
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.transformers import end_token_ids
from ruyi_rl.stages.inputs import device, load_family, load_tokenizer


@dataclass(frozen=True)
class Asked:
    """The tasks that are asked for, with their data."""

    manager: TaskManager
    objects: list[Task | Group]

    @property
    def single(self) -> list[Task]:
        """Those of all groups as well."""
        return [task for each in self.objects for task in (each.get_all_tasks() if isinstance(each, Group) else [each])]


def load_tasks(options: HarnessOptions) -> Asked:
    """The tasks with their data, which comes from the hub or its cache.

    Raises:
        Refusal: naming the task that cannot be loaded.
    """
    manager, loaded = _manager(options), []
    for name in options.tasks:
        try:
            found = manager.load([name])
        except Exception as error:
            problem = f"{name} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
            others = ",".join(other for other in options.tasks if other != name)
            remedy = (
                "its data have to be on this machine or on the hub, for some of it with an HF_TOKEN that may read it"
            )
            leave = f"; without it: 'eval.harness.tasks=[{others}]'" if others else ""
            raise Refusal("eval.harness.tasks", problem, remedy + leave) from error
        group = found["groups"].get(name)
        loaded += [group] if group is not None else found["tasks"].values()
    return Asked(manager, loaded)


def _manager(options: HarnessOptions) -> TaskManager:
    if options.include_path is not None:
        own = task_manager(options.include_path, include_defaults=False)
        if set(options.tasks) <= set(own.all_subtasks):  # a group may hold the harness's own tasks
            return own
    return task_manager(options.include_path)


def fewest_questions(tasks: Asked, limit: float | None) -> int:
    """Questions of the smallest of all single tasks, under the limit."""
    return min(min(len(task.eval_docs), get_sample_size(task, limit) or math.inf) for task in tasks.single)


def shared_out(tasks: Asked, limit: float | None) -> Sharing | None:
    """How the ranks share out the questions; None for a rank that has none. All ranks call it.

    Every rank must have a question of each single task, or the harness fails.
    """
    sharing = min(ranks.world_size(), fewest_questions(tasks, limit))
    if ranks.world_size() == 1:
        return Sharing()
    group = ranks.group(range(sharing))
    return Sharing(ranks.rank(), sharing, group) if ranks.rank() < sharing else None


def measure_exit(
    folder: Path,
    exit: str,
    tasks: Asked,
    options: HarnessOptions,
    backend: str,
    seed: int,
    sharing: Sharing,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """What the harness's `simple_evaluate` finds for one exit; None on other ranks than the first.

    Args:
        folder: of the family.
        backend: `hf` or `vllm`.
        seed: decides the examples of few-shot prompts and all that is drawn.

    Raises:
        Refusal: chats are asked for, and the tokenizer has no template.
    """
    with quiet(), _language_model(folder, exit, options, backend, seed, sharing, reporter) as model:
        return lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks.objects),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            batch_size=options.batch_size,
            apply_chat_template=options.chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            task_manager=tasks.manager,
            **{"log_samples": False, **options.arguments},
        )


@contextmanager
def _language_model(
    folder: Path, exit: str, options: HarnessOptions, backend: str, seed: int, sharing: Sharing, reporter: Reporter
) -> Iterator[Any]:
    tokenizer = load_tokenizer(folder)
    if options.chat_template and tokenizer.chat_template is None:
        raise Refusal("eval.harness.chat_template", f"the tokenizer in {folder} has no chat template", "false")
    branch = stock_branch(folder, exit, tokenizer)
    if backend == "hf":
        size = options.batch_size or "auto"
        yield BranchLM(branch.to(device()), tokenizer, sharing, reporter, batch_size=size, **options.model)
        return
    with tempfile.TemporaryDirectory(prefix="ruyi-harness-") as stock:
        branch.save_pretrained(stock)
        tokenizer.save_pretrained(stock)
        config = branch.config
        del branch
        with vllm_branch(Path(stock), exit, config, reporter, seed, dict(options.model)) as model:
            yield model


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the harness draws no bars, and does not ask git about the folder that it is called in."""
    hidden = partial(tqdm, disable=True)
    with (
        patch.object(lm_eval.api.task, "tqdm", hidden),
        patch.object(lm_eval.evaluator, "get_git_commit_hash", lambda: None),
    ):
        yield


def stock_branch(folder: Path, exit: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An exit's branch as a stock Qwen that ends where the family does; nothing else of the family stays in memory."""
    family = load_family(folder, ModelOptions()).eval()
    branch = family.branch(exit, copy=False)
    branch.generation_config.eos_token_id = end_token_ids(family, tokenizer)
    return branch


def chosen_backend(options: HarnessOptions, problem: Callable[[], str | None]) -> tuple[str, str]:
    """(backend, why) of `eval.harness.backend`.

    Args:
        problem: why vLLM cannot be imported; None if it can.
    """
    if options.backend != "auto":
        return options.backend, ""
    if ranks.world_size() > 1:
        return "hf", "several ranks share out the questions"
    if device().type != "cuda":
        return "hf", "there is no GPU"
    if found := problem():
        return "hf", found
    return "vllm", ""
