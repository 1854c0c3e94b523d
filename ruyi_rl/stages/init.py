"""`stage=init`: a family from a base model, from a family, or from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen3Config
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ruyi_rl import ranks
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.execution import StageContext
from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.stages.inputs import end_at_turn_end
from ruyi_rl.validation.foreign import refuse_code, tokenizer_code

BACKBONES = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}


def run(context: StageContext) -> dict[str, Any]:
    """Builds the family on rank 0 and saves it with its tokenizer in the stage's folder."""
    return ranks.on_rank_zero(lambda: _build(context))


def _build(context: StageContext) -> dict[str, Any]:
    options = context.config.model
    if options.base is None:
        family, tokenizer = from_scratch(options, context.config.seed)
    else:
        with context.console.status(f"reading {options.base}"):
            family, tokenizer = from_base(options)
    declare_ends(family, tokenizer)
    family.save_pretrained(context.folder)
    tokenizer.save_pretrained(context.folder)
    return {
        "base": options.base,
        "base_on_hub": options.base is not None and not Path(options.base).is_dir(),
        "parameters": sum(parameter.numel() for parameter in family.parameters()),
        "exits": {
            name: {"k": k, "layers": k + 1, "parameters": family.branch_parameters(name)}
            for name, k in family.exits.items()
        },
    }


def from_scratch(options: ModelOptions, seed: int) -> tuple[Family, PreTrainedTokenizerBase]:
    """A family of random weights by `model.scratch`, with the byte-level tokenizer.

    Raises:
        Refusal: an unknown architecture or key, or values that make no model.
    """
    if options.architecture not in BACKBONES:
        raise Refusal("model.architecture", f"{options.architecture!r}", nearest(options.architecture, BACKBONES))
    kind = BACKBONES[options.architecture]
    known = kind().to_dict()
    for key in options.scratch:
        if key not in known:
            raise Refusal(f"model.scratch.{key}", "no such key", nearest(key, known))
    tokenizer = byte_tokenizer()
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        config = kind(**{"vocab_size": len(tokenizer), **tokens, **options.scratch})
        family = Family.from_scratch(config, options.exits, options.shared_heads, seed)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refusal("model.scratch", str(error)) from error
    family.generation_config = GenerationConfig(**tokens)
    return family.to(getattr(torch, options.dtype)), tokenizer


def from_base(options: ModelOptions) -> tuple[Family, PreTrainedTokenizerBase]:
    """The family that lies at `model.base`, or one grown on the stock Qwen that lies there, with its tokenizer.

    Raises:
        Refusal: nothing there, no Qwen, or exits that do not fit it.
    """
    base = options.base
    kwargs: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
    if options.attn_implementation is not None:
        kwargs["attn_implementation"] = options.attn_implementation
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if isinstance(config, FamilyConfig):
            _require_same_exits(options, config.exits)
            family = Family.from_pretrained(base, **kwargs)
        else:
            refuse_code("model.base", base, "model", getattr(config, "auto_map", None))
            refuse_code("model.base", base, "tokenizer", tokenizer_code(get_tokenizer_config(base)))
            family = Family.from_base(base, options.exits, shared_heads=options.shared_heads, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise Refusal("model.base", f"{base}: {str(error).strip().splitlines()[0]}") from error
    return family, tokenizer


def declare_ends(family: Family, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets the end of a turn end a completion, for whoever reads tokenizer, config or generation config.

    What ended one before still does.
    """
    before = family.generation_config.eos_token_id
    before = [] if before is None else [before] if isinstance(before, int) else before
    ends = list(dict.fromkeys([*end_at_turn_end(tokenizer), *before]))
    family.config.eos_token_id = tokenizer.eos_token_id
    family.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _require_same_exits(options: ModelOptions, exits: dict[str, int]) -> None:
    if options.exits and options.exits != exits:
        raise Refusal("model.exits", f"{options.exits}, but {options.base} is a family with {exits}", "leave it out")
