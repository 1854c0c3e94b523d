"""Weight names: how a family's tensors relate to a stock Qwen's.

Published names (Ruyi, Ruyi2): `model.embed_tokens`, `model.layers.{i}` (the trunk and the last exit's own layer),
`model.eelayers.{j}` (one decoder layer per earlier exit), `model.norms.{j}`, `lm_head.{j}` or a shared `lm_head`.
Ours besides: `model.expansions.{j}.{i}`, the blocks between an exit's own layer and its norm. Where a linear layer is
factored, its `weight` is the product of `u.weight` and `v.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ruyi_rl.family.config import FamilyConfig


def branch_sources(config: FamilyConfig, exit: str, branch_names: Iterable[str]) -> dict[str, str]:
    """Stock tensor name of the exit's branch -> the family's tensor name.

    Args:
        config: the family's configuration.
        exit: the exit's name.
        branch_names: state-dict names of the stock model of the branch's depth. The dense ones, whatever is factored:
            `tensors_of` says which of the family's tensors make one up.
    """
    index, depth = list(config.exits).index(exit), config.exits[exit]
    last = index == len(config.exits) - 1
    sources = {}
    for name in branch_names:
        if name == "model.norm.weight":
            sources[name] = f"model.norms.{index}.weight"
        elif name.startswith("lm_head."):
            sources[name] = name if config.shared_heads else name.replace("lm_head.", f"lm_head.{index}.", 1)
        elif name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            if int(number) > depth:
                sources[name] = f"model.expansions.{index}.{int(number) - depth - 1}.{rest}"
            elif int(number) == depth and not last:
                sources[name] = f"model.eelayers.{index}.{rest}"
            else:
                sources[name] = name
        else:
            sources[name] = name
    return sources


def tensors_of(config: FamilyConfig, dense_name: str) -> tuple[str, ...]:
    """Names of the tensors that a family holds for a dense one: itself, or the two factors (out, rank), (rank, in)."""
    module, _, kind = dense_name.rpartition(".")
    if module not in config.factor_ranks:
        return (dense_name,)
    return (f"{module}.u.weight", f"{module}.v.weight") if kind == "weight" else (f"{module}.u.{kind}",)


def dense(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The dense tensor that those of `tensors_of` make up, in their dtype; a product is summed in float32 at least."""
    if len(tensors) == 1:
        return tensors[0]
    u, v = tensors
    wide = torch.promote_types(u.dtype, torch.float32)
    return (u.to(wide) @ v.to(wide)).to(u.dtype)


def private_modules(config: FamilyConfig, exit: str) -> dict[str, str]:
    """Prefix of the exit's expansion blocks, norm and head in the stock model of its branch -> in the family.

    Only what belongs to this exit alone: a shared head is not among them.
    """
    index, depth = list(config.exits).index(exit), config.exits[exit]
    found = {
        f"model.layers.{depth + 1 + block}.": f"model.expansions.{index}.{block}."
        for block in range(config.expansions[exit])
    }
    found["model.norm."] = f"model.norms.{index}."
    if not config.shared_heads:
        found["lm_head."] = f"lm_head.{index}."
    return found


def base_sources(config: FamilyConfig, base_names: Iterable[str]) -> dict[str, str]:
    """Family tensor name -> the stock base's tensor name that initialises it.

    An earlier exit's layer copies `layers[k]`, the layer that follows its exit, so that an untrained branch is the base
    cut after k + 1 layers; norms and heads copy the base's. Each exit's branch at the base's own full depth tells it.
    """
    base_names = list(base_names)
    sources = {}
    for exit, depth in config.exits.items():
        kept = [n for n in base_names if not n.startswith("model.layers.") or int(n.split(".")[2]) <= depth]
        for stock_name, family_name in branch_sources(config, exit, kept).items():
            sources[family_name] = stock_name
    return sources


def parameters_of(config: FamilyConfig, exits: Iterable[str], family_names: Iterable[str]) -> set[str]:
    """Names of the family's tensors that any of the exits runs through."""
    wanted = set(exits)
    used = {"model.embed_tokens.", "lm_head.weight"}
    points = list(config.exits.items())
    for index, (name, depth) in enumerate(points):
        if name not in wanted:
            continue
        used |= {f"model.layers.{i}." for i in range(depth)}
        used |= {f"model.norms.{index}.", f"lm_head.{index}.", f"model.expansions.{index}."}
        used.add(f"model.layers.{depth}." if index == len(points) - 1 else f"model.eelayers.{index}.")
    return {name for name in family_names if any(name.startswith(prefix) for prefix in used)}


def expansion_parameters(config: FamilyConfig, exits: Iterable[str], family_names: Iterable[str]) -> set[str]:
    """Names of the tensors that DaE trains: the exits' expansion blocks, norms and heads of their own."""
    prefixes = tuple(prefix for exit in exits for prefix in private_modules(config, exit).values())
    return {name for name in family_names if name.startswith(prefixes)}
