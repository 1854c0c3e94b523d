"""`stage=expand`: new decoder blocks on one exit's branch, which still computes what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.failure import StageFailed
from ruyi_rl.family import Family
from ruyi_rl.family.expansion import trained_share
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages.inputs import load_family, load_tokenizer
from ruyi_rl.validation.expansion import expanded
from ruyi_rl.validation.known_family import described_family

PROBES = (4, 32)
"""Rows and tokens that the exit's logits are compared on, before and after."""


def run(context: StageContext) -> dict[str, Any]:
    """Expands the exit on rank 0 and saves the family with its tokenizer in the stage's folder."""
    return ranks.on_rank_zero(lambda: _expand(context))


def _expand(context: StageContext) -> dict[str, Any]:
    config, options = context.config, context.config.expand
    with context.console.status(f"reading {context.input}"):
        family, tokenizer = load_family(context.input, config.model), load_tokenizer(context.input)
    expanded(options, described_family(family.config.to_dict()))  # what a family on the hub is, was not known before
    exit = next(iter(family.exits)) if options.exit is None else options.exit
    change = expand_unchanged(family, exit, options.blocks, options.init, config.seed, options.again)
    family.save_pretrained(context.folder)
    tokenizer.save_pretrained(context.folder)
    trained, branch = trained_share(family.config, exit)
    return {
        "exit": exit,
        "blocks": options.blocks,
        "exits": {
            name: {"k": k, "layers": family.config.depths[name], "parameters": family.branch_parameters(name)}
            for name, k in family.exits.items()
        },
        "trained_parameters": trained,
        "trained_share": trained / branch,
        "max_logit_change": change,
        **held_out_before(context.input),
    }


def expand_unchanged(family: Family, exit: str, blocks: int, init: str, seed: int, again: bool) -> float:
    """`Family.expand`, and that the exit's logits on random tokens are the same bit by bit.

    Returns:
        The largest change of a logit: 0.0.

    Raises:
        ValueError: see `Family.expand`.
        StageFailed: a logit changed, or is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(family.config.vocab_size, PROBES, generator=generator).to(family.device)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return family(tokens, exits=exit, use_cache=False).logits[exit].float()

    family.eval()
    before = logits()
    family.expand(exit, blocks, init, seed, again)
    change = float((logits() - before).abs().max())
    if change != 0.0:
        raise StageFailed(f"the new blocks change the logits of {exit} by up to {change}, which must be 0")
    return change


def held_out_before(folder: Path) -> dict[str, Any]:
    """`{"held_out": …}` of the stage that made the family in `folder`: they hold for the same functions.

    Empty where it measured none. `measured_in` names the stage that did.
    """
    try:
        summary = StageFolder(folder).summary()
    except (FileNotFoundError, ValueError):
        return {}
    found = summary.get("held_out")
    return {"held_out": {"measured_in": summary.get("stage"), **found}} if found else {}
