"""The rollout back end of a stage: made once, given each family in turn, closed however the stage ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ruyi_rl.execution import StageContext
from ruyi_rl.family import FamilyConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.selection import make_rollout
from ruyi_rl.rollout.transformers import declared_ends
from ruyi_rl.rollout.worker import Rollout, RolloutSpec
from ruyi_rl.stages.held_out import evaluation_options

LIMITS = ("data.max_prompt_tokens", "grpo.trainer.max_completion_length", "evaluation.max_new_tokens")
"""Keys that bound the prompts and completions of a training and its evaluations."""


@contextmanager
def rollouts(
    context: StageContext,
    folder: Path,
    exits: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    longest_prompt: int,
    max_new_tokens: int,
    limits: Sequence[str] = LIMITS,
) -> Iterator[Rollout]:
    """A back end for families of the kind in `folder`, without weights yet.

    Args:
        folder: a family.
        exits: names of the exits that will be asked for.
        longest_prompt: in tokens.
        max_new_tokens: longest completion.
        limits: keys that bound the two.

    Raises:
        Refusal: a back end that cannot run here, or a limit that is too short.
    """
    options = context.config.rollout
    config = FamilyConfig.from_pretrained(str(folder))
    spec = RolloutSpec(
        config=config,
        exits=tuple(name for name in config.exits if name in exits),
        end_token_ids=tuple(declared_ends(generation_config(folder), tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        dtype=config.dtype or torch.float32,
        max_model_len=model_length(
            options.max_model_len, config.max_position_embeddings, longest_prompt, max_new_tokens, limits
        ),
        folder=context.folder / "rollout",
        seed=context.config.seed,
    )
    rollout = make_rollout(
        options, spec, lambda line: context.console.print(line, markup=False, soft_wrap=True), context.heart.beat
    )
    try:
        yield rollout
    finally:
        rollout.close()


def completion_limit(context: StageContext, training: int | None = None) -> int:
    """The longest completion that the stage asks for: of the trainer, or of an evaluation."""
    limits = [training] if training else []
    if context.config.evaluation.problems:
        limits.append(evaluation_options(context.config).max_new_tokens)
    return max(limits)


def model_length(
    asked: int | None, positions: int, longest_prompt: int, max_new_tokens: int, limits: Sequence[str] = LIMITS
) -> int:
    """Tokens that an engine must hold: what was asked for, or prompt and completion together.

    Args:
        asked: `rollout.max_model_len`.
        positions: the model's `max_position_embeddings`.
        limits: keys that bound prompt and completion, that of the prompt first.

    Raises:
        Refusal: less than prompt and completion, or more than the model has positions.
    """
    needed = longest_prompt + max_new_tokens
    shown = f"a prompt of {longest_prompt} and a completion of {max_new_tokens} tokens"
    if needed > positions:
        raise Refusal(
            limits[0],
            f"{shown} are longer than the model's {positions} positions",
            f"a lower {', '.join(limits[:-1])} or {limits[-1]}",
        )
    if asked is not None and not needed <= asked <= positions:
        raise Refusal("rollout.max_model_len", f"{asked}, but {shown} make {needed}", f"from {needed} to {positions}")
    return asked or needed


def generation_config(folder: Path) -> GenerationConfig:
    """The one saved in `folder`; an empty one where there is none."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig()
