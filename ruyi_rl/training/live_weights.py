"""A rollout back end with the weights of a training that is under way, between two of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl.models.utils import unwrap_model_for_generation

from ruyi_rl import ranks
from ruyi_rl.family import Family
from ruyi_rl.family.stored import weight_files
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.training.callbacks import CastAtEnd
from ruyi_rl.training.frozen_weights import restore_frozen
from ruyi_rl.training.run_state import RandomStates


@contextmanager
def live_weights(trainer: Trainer, rollout: Rollout) -> Iterator[None]:
    """Context in which `rollout` generates with the trainer's current weights; the training goes on as without it.

    Random states are put back, the model's mode too (the back end does that), and a GRPO trainer sends its weights
    again before its next rollouts, which empties an engine's prefix cache.

    Every rank enters it at the same point. Nothing may be raised through it if the training is to go on.
    """
    states = RandomStates.now()
    if rollout.runs_family:
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as family:
            rollout.update_weights(family)
            yield
    else:
        rollout.update_weights(trainer.accelerator.unwrap_model(trainer.model_wrapped))
        yield
    states.restore()


def save_live(trainer: Trainer, folder: Path, start: Path, frozen: list[str] | None) -> None:
    """Writes the family as it is now, and its tokenizer, as it would be at the training's end; every rank calls it.

    Args:
        folder: empty.
        start: folder of the family that the training started from.
        frozen: with `train_only`, the trained exits: all that was frozen is stored as it was in `start`. Else None.
    """
    config = trainer.model.config
    declared, config.use_cache = config.use_cache, True
    trainer.save_model(str(folder), _internal_call=True)  # the end alone is pushed to a hub
    config.use_cache = declared
    ranks.barrier()

    casts = [each.dtype for each in trainer.callback_handler.callbacks if isinstance(each, CastAtEnd)]

    def mend() -> None:
        if frozen is not None:
            restore_frozen(start, folder, frozen)
        elif casts:
            store_as(folder, casts[0])

    with loading_whole(trainer):
        ranks.on_rank_zero(mend)


def store_as(folder: Path, dtype: torch.dtype) -> None:
    """Writes a saved family anew, in another dtype."""
    family = Family.from_pretrained(str(folder), dtype=dtype)
    for file in (*weight_files(folder), *folder.glob("model.safetensors.index.json")):
        file.unlink()  # a narrower family may take fewer files
    family.save_pretrained(folder)


@contextmanager
def loading_whole(trainer: Trainer) -> Iterator[None]:
    """Context in which one rank may load a family by itself: under ZeRO-3 transformers would shard it over all."""
    config = getattr(trainer.args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)
