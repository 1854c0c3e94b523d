"""From the config's `trainer` block to TRL's configuration object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ruyi_rl import ranks
from ruyi_rl.redaction import Unpickled, is_secret
from ruyi_rl.refusal import Refusal
from ruyi_rl.training.rank_change import RankChange

Arguments = TypeVar("Arguments")
KINDS = {"SFTConfig": "sft", "GRPOConfig": "grpo"}
"""Name of a configuration class -> kind of trainer."""


def trainer_arguments(
    kind: type[Arguments],
    key: str,
    given: Mapping[str, Any],
    output_dir: Path,
    seed: int,
    defaults: Mapping[str, Any] | None = None,
    began_on: int | None = None,
) -> Arguments:
    """An SFTConfig or GRPOConfig from what the config gives; what it leaves out gets the project's defaults.

    Args:
        kind: the class to make.
        key: the config key of `given`, for messages.
        given: field -> value; always wins, but for the output folder.
        output_dir: where checkpoints go.
        seed: the run's seed.
        defaults: further defaults of the stage.
        began_on: ranks that `given` is for: on others an optimiser step has as many more or fewer micro-batches.
            None: those of now.

    Raises:
        Refusal: the class refuses a value.
    """
    cuda = torch.cuda.is_available()
    try:
        given = RankChange(began_on or ranks.world_size(), ranks.world_size()).scaled(given, KINDS[kind.__name__])
    except ValueError as error:
        raise Refusal("num_processes", str(error)) from error
    values: dict[str, Any] = {
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        # A tenth of the run is the most that a kill without warning costs; a signal saves by itself.
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        # TRL's default is bf16 everywhere; a CPU would be slowed down and a small model blurred by it.
        "bf16": cuda and torch.cuda.is_bf16_supported() and not given.get("fp16", False),
        "dataloader_pin_memory": cuda,
        **(defaults or {}),
        **given,
        "output_dir": str(output_dir),
    }
    if not torch.accelerator.is_available():
        # Without it accelerate overlooks the other ranks on a CPU, and every rank would train by itself.
        values["use_cpu"] = True
    try:
        arguments = kind(**values)
    except (TypeError, ValueError) as error:
        raise Refusal(key, " ".join(str(error).split())) from error
    for name, value in vars(arguments).items():
        if isinstance(value, str) and is_secret(name, value):
            setattr(arguments, name, Unpickled(value))  # transformers pickles the arguments beside what it uploads
    if arguments.world_size != ranks.world_size():
        raise RuntimeError(f"the trainer sees {arguments.world_size} ranks, the launcher started {ranks.world_size()}")
    return arguments


def check_correction(args) -> None:
    """Raises ValueError where the importance correction for an engine's log-probs does not go with the loss."""
    mode = args.vllm_importance_sampling_mode
    if args.loss_type == "vespo" and args.vllm_importance_sampling_correction and mode.startswith("sequence"):
        raise ValueError(
            f"loss_type='vespo' weighs tokens: vllm_importance_sampling_mode must be token_truncate or token_mask, "
            f"not {mode}, or vllm_importance_sampling_correction=false"
        )


def check_token_budget(budget: int, args) -> None:
    """Raises ValueError where a token budget makes no sense."""
    if budget < 1:
        raise ValueError(f"token_budget must be at least 1 token, not {budget}")
    if args.top_entropy_quantile < 1.0:
        raise ValueError(
            f"token_budget computes a micro-batch in packs, but top_entropy_quantile={args.top_entropy_quantile} ranks "
            "the tokens of whole micro-batches: leave out one of them"
        )
