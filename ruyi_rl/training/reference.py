"""GRPO's reference policy: the policy as it starts, without a second copy of the weights that never change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedModel
from trl import GRPOConfig
from trl.models.utils import prepare_deepspeed


def reference_of(policy: PreTrainedModel) -> PreTrainedModel:
    """A copy of the policy that shares the policy's frozen parameters and owns the others.

    Nothing is read from disk, and a frozen parameter is never held twice, not even while the copy is made. What is
    shared is the `Parameter` object, not only its storage: moving or casting the one model in place, as DeepSpeed's
    engines and `Module.to` do, moves or casts it in the other too.

    To be called after the policy is frozen (see `freeze_others`) and before a trainer or an engine gets it, since their
    hooks and replaced forwards would be copied. What is frozen here must stay so, and nobody may write to it.

    Args:
        policy: whole, not sharded: a copy of ZeRO-3's shards would be known to no engine.

    Returns:
        The reference, in eval mode, without gradients, with buffers of its own; tied weights are tied in it as well.
    """
    frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    reference = copy.deepcopy(policy, memo=frozen)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference.eval()


def can_share(args: GRPOConfig, peft: bool = False) -> bool:
    """Whether a reference is needed that can be made by `reference_of`; otherwise TRL makes what it makes.

    TRL's own way stays under
      * ZeRO-3 and FSDP: the reference is sharded over the ranks already, and an engine that has a parameter keeps its
        state on it, so that two engines cannot have the same one;
      * `sync_ref_model`: TRL mixes the policy into the reference in place, which on a shared tensor is
        w ← (1 - α) w, then w ← w + α w: the policy's frozen weights would shrink at every sync;
      * `cast_lm_head_to_fp32` and `model_init_kwargs`, which change what TRL's reference is;
      * an adapter (`peft`), with which there is no reference model.
    """
    plugin = args.deepspeed_plugin
    sharded = args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP") or (plugin is not None and plugin.zero_stage == 3)
    other = args.sync_ref_model or args.cast_lm_head_to_fp32 or args.model_init_kwargs
    return args.beta != 0.0 and not (sharded or other or peft)


@contextmanager
def shared_reference(policy: PreTrainedModel, args: GRPOConfig, peft: bool = False) -> Iterator[PreTrainedModel | None]:
    """GRPOTrainer's constructor, run in here, loads no second model where the reference can share the policy's weights.

    What decides in the constructor is `args.beta` alone: it is 0 in here and as before afterwards. The trainer's own
    `beta` and `ref_model` are to be set then, the latter to what is yielded, `prepared`.

    Yields:
        The reference (see `reference_of`); None where TRL makes it, or makes none (see `can_share`).
    """
    if not can_share(args, peft):
        yield None
        return
    reference = reference_of(policy)
    beta, args.beta = args.beta, 0.0
    try:
        yield reference
    finally:
        args.beta = beta


def prepared(reference: PreTrainedModel, accelerator: Accelerator, deepspeed: bool) -> nn.Module:
    """The reference as TRL prepares its own: placed and cast for the run, not wrapped for training."""
    if deepspeed:
        return prepare_deepspeed(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)
