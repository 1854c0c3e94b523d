"""What a training stage reads: the family and tokenizer of the stage before, the chosen exits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.family.shape import family_shape
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.report.memory import MemoryReport
from ruyi_rl.training.callbacks import CastAtEnd
from ruyi_rl.training.deepspeed import sharding_mode
from ruyi_rl.training.family_trainer import trained_exits
from ruyi_rl.training.options import GRPOOptions, SFTOptions
from ruyi_rl.training.stage_memory import TRL_DEFAULTS, Device, estimate_stage


def load_family(folder: Path, options: ModelOptions) -> Family:
    """The family in `folder`, in the dtype that it was saved in and with the attention that the config asks for.

    Raises:
        Refusal: no family there.
    """
    kwargs: dict[str, Any] = {"dtype": "auto"}
    if options.attn_implementation is not None:
        kwargs["attn_implementation"] = options.attn_implementation
    try:
        return Family.from_pretrained(str(folder), **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise Refusal(str(folder), f"holds no family that can be loaded: {error}") from error


def load_to_train(
    folder: Path, options: ModelOptions, deepspeed: Mapping[str, Any] | None
) -> tuple[Family, list[TrainerCallback]]:
    """The family in `folder` with weights that small steps can move, and callbacks for its trainer.

    AdamW's steps at a learning rate of 1e-6 are lost to the rounding of 16-bit weights, so without DeepSpeed the
    weights are float32 while they are trained (the trainer's bf16 or fp16 still computes in 16 bits), and saved in the
    dtype that they came in. DeepSpeed's engine keeps float32 masters by itself.

    Args:
        deepspeed: DeepSpeed's configuration; None: no DeepSpeed.

    Raises:
        Refusal: no family there.
    """
    family = load_family(folder, options)
    dtype = family.dtype
    if deepspeed is not None or dtype == torch.float32:
        return family, []
    return family.float(), [CastAtEnd(dtype)]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a family; its end token ends a turn (see `end_at_turn_end`).

    Raises:
        Refusal: none there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refusal(str(folder), f"holds no tokenizer that can be loaded: {error}") from error
    end_at_turn_end(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_at_turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Makes the token with which the chat template ends an assistant's turn the tokenizer's end token.

    The tokenizers of base models name another one (Qwen's: <|endoftext|>, not <|im_end|>), which no chat holds: a
    family fine-tuned on chats would never be seen to stop. The old end token pads where nothing did.

    Returns:
        Ids of the tokens that may end a completion: the turn's end, then the end token of before if it is another.
    """
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template is None:
        return ends
    turn = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False).rstrip()
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    if last in ends or last not in tokenizer.added_tokens_decoder:
        return ends
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(last)
    return [last, *ends]


def chosen_exits(folder: Path, options: SFTOptions | GRPOOptions, block: str) -> dict[str, int]:
    """Exit name -> position k of the exits that a block trains, shallowest first.

    Args:
        folder: the family that the training starts from.
        block: key of the block.

    Raises:
        Refusal: an exit that the family has not, or with `train_only` one that has no expansion blocks.
    """
    config = FamilyConfig.from_pretrained(str(folder))
    for name in options.exits or ():
        if name not in config.exits:
            raise Refusal(f"{block}.exits", f"no exit {name!r} in {folder}", nearest(name, config.exits))
        if options.train_only is not None and not config.expansions[name]:
            expanded = [exit for exit, blocks in config.expansions.items() if blocks]
            allowed = f"one of {expanded}" if expanded else "a family that stage=expand has made"
            raise Refusal(f"{block}.exits", f"{name} has no expansion blocks in {folder}", allowed)
    try:
        chosen = options.exits or trained_exits(config, options.train_only)
    except ValueError as error:
        raise Refusal(f"{block}.train_only", f"{error} in {folder}", "a family that stage=expand has made") from None
    return {name: k for name, k in config.exits.items() if name in chosen}


def device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def trained_parameters(family: Family) -> tuple[int, int]:
    """Number of parameters that take gradients, and of all; under ZeRO-3 as if they were not sharded."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter) for parameter in family.parameters()]
    return sum(size for size, parameter in sizes if parameter.requires_grad), sum(size for size, _ in sizes)


def memory_report(
    config: RunConfig,
    stage: str,
    family: Family,
    args: TrainingArguments,
    options: SFTOptions | GRPOOptions,
    longest_prompt: int | None = None,
    longest_row: int | None = None,
) -> MemoryReport:
    """What a rank will hold at most of a family whose rest is frozen already, against what its device has.

    Args:
        options: the stage's block.
        longest_prompt, longest_row: in tokens; see `estimate_stage`.
    """
    read = {name: getattr(args, name) for name in (*TRL_DEFAULTS, "bf16") if hasattr(args, name)}
    own = device()
    if own.type == "cuda":
        held = torch.cuda.get_device_properties(own).total_memory
    else:
        held = psutil.virtual_memory().total // ranks.local_world_size()
    estimate = estimate_stage(
        config,
        stage,
        family_shape(family.config.to_dict(), family.config.exits, family.config.expansions),
        sharding_mode(config.deepspeed, args.world_size),
        args.world_size,
        Device(own.type, held),
        longest_prompt,
        longest_row,
        replace(options, trainer={**options.trainer, **read}),
        trained_parameters(family),
    )
    return MemoryReport(estimate, own.type, held, args.gradient_checkpointing, stage)


def weight_bytes(family: Family) -> dict[str, int]:
    """Bytes of each exit's branch and, under `family`, of all weights; under ZeRO-3 as if they were not sharded."""
    size = family.dtype.itemsize
    whole = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in family.parameters())
    return {**{exit: size * family.branch_parameters(exit) for exit in family.exits}, "family": size * whole}
