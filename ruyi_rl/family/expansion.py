"""Expansion, the first half of DaE (Ruyi2 report, §4.3.2): new decoder blocks on a branch, which change nothing yet.

A block is `h + W_o·attention(h)` and then `h + W_down·mlp(h)`: with both matrices 0 it is the identity, bit by bit. At
the first step these two alone get a gradient; from the second on the rest of the block does too.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from ruyi_rl.family.options import EXPANSION_INITS
from ruyi_rl.family.trunk import layer_config
from ruyi_rl.family.weights import expansion_parameters, parameters_of, private_modules

if TYPE_CHECKING:
    from ruyi_rl.family.config import FamilyConfig
    from ruyi_rl.family.model import Family

SILENT = ("self_attn.o_proj.", "mlp.down_proj.")
"""The two matrices of a block that write to the residual stream."""


def expand(family: Family, exit: str, blocks: int, init: str, seed: int, again: bool) -> None:
    """Append decoder blocks to an exit's branch, in place; its logits do not change at all. See `Family.expand`."""
    config = family.config
    if exit not in config.exits:
        raise ValueError(f"no such exit: {exit!r}; this family has {list(config.exits)}")
    if blocks < 1:
        raise ValueError(f"blocks must be 1 or more, not {blocks}")
    if init not in EXPANSION_INITS:
        raise ValueError(f"init must be one of {EXPANSION_INITS}, not {init!r}")
    before = config.expansions[exit]
    if before and not again:
        raise ValueError(f"{exit} has {before} expansion blocks already; again=True appends {blocks} more")
    if compressed_exit(family, exit):
        raise ValueError(f"{exit} is compressed; expand the family that it was compressed from")
    index, below = list(config.exits).index(exit), family.model.own_layers(exit)[-1]
    of_layers = layer_config(config, config.depths[exit] + blocks)
    for block in range(before, before + blocks):
        with torch.device("meta"):
            layer = type(below)(of_layers, config.exits[exit] + 1 + block)
        if init == "clone":
            tensors = _cloned(below)
        else:
            tensors = _drawn(layer, below, config.initializer_range, _generator(seed, exit, block))
        for name in tensors:
            if name.startswith(SILENT):
                tensors[name] = torch.zeros_like(tensors[name])
        layer.load_state_dict(tensors, strict=True, assign=True)
        layer.train(family.training)
        family.model.expansions[index].append(layer)
    config.expansion_blocks = [
        number + blocks if name == exit else number for name, number in config.expansions.items()
    ]


def trained_share(config: FamilyConfig, exit: str) -> tuple[int, int]:
    """Number of parameters of an exit's branch that `train_only=expansion` trains, and of the whole branch.

    Told from shapes alone: nothing is allocated.

    Raises:
        ValueError: no such exit.
    """
    from ruyi_rl.family.model import Family

    if exit not in config.exits:
        raise ValueError(f"no such exit: {exit!r}; this family has {list(config.exits)}")
    with torch.device("meta"):
        sizes = {name: parameter.numel() for name, parameter in Family(config).named_parameters()}
    found = (select(config, [exit], sizes) for select in (expansion_parameters, parameters_of))
    trained, branch = (sum(sizes[name] for name in names) for names in found)
    return trained, branch


def compressed_exit(family: Family, exit: str) -> bool:
    """Whether any layer of the exit's own is factored."""
    prefixes = tuple(private_modules(family.config, exit).values())
    return any(f"{name}.".startswith(prefixes) for name in family.config.factor_ranks)


def _generator(seed: int, exit: str, block: int) -> torch.Generator:
    """Each block's own, so that blocks appended later, or to another exit, are other draws."""
    digest = hashlib.sha256(repr((seed, exit, block)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _drawn(layer: nn.Module, like: nn.Module, std: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Gaussian matrices, biases 0 and norms 1; drawn in float32 on the CPU, so the same on every device."""
    tensors, place = {}, {"device": like.mlp.gate_proj.weight.device, "dtype": like.mlp.gate_proj.weight.dtype}
    for name, parameter in layer.named_parameters():
        if parameter.dim() == 2:
            tensors[name] = torch.empty(parameter.shape).normal_(0.0, std, generator=generator).to(**place)
        else:
            tensors[name] = torch.full(parameter.shape, float(not name.endswith("bias")), **place)
    return tensors


def _cloned(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
