"""Weight names: how a family's tensors relate to a stock Qwen's. The only place that knows.

Published names (Ruyi, Ruyi2): `model.embed_tokens`, `model.layers.{i}` (the trunk and the last exit's own layer),
`model.eelayers.{j}` (one decoder layer per earlier exit), `model.norms.{j}`, `lm_head.{j}` or a shared `lm_head`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ruyi_rl.family.config import FamilyConfig


def branch_sources(config: FamilyConfig, exit: str, branch_names: Iterable[str]) -> dict[str, str]:
    """Stock tensor name of the exit's branch -> the family's tensor name.

    Args:
        config: the family's configuration.
        exit: the exit's name.
        branch_names: state-dict names of the stock model of depth k + 1.
    """
    index, depth = list(config.exits).index(exit), config.exits[exit]
    own_layer = f"model.layers.{depth}."
    last = index == len(config.exits) - 1
    sources = {}
    for name in branch_names:
        if name == "model.norm.weight":
            sources[name] = f"model.norms.{index}.weight"
        elif name == "lm_head.weight":
            sources[name] = name if config.shared_heads else f"lm_head.{index}.weight"
        elif name.startswith(own_layer) and not last:
            sources[name] = f"model.eelayers.{index}." + name.removeprefix(own_layer)
        else:
            sources[name] = name
    return sources


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
        used |= {f"model.norms.{index}.", f"lm_head.{index}."}
        used.add(f"model.layers.{depth}." if index == len(points) - 1 else f"model.eelayers.{index}.")
    return {name for name in family_names if any(name.startswith(prefix) for prefix in used)}
