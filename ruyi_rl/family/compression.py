"""Compression: the second half of DaE (Ruyi2 report, §4.4). An exit's new blocks and head as thin factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from ruyi_rl.family.calibration import collect_grams, compressed_modules, module_group
from ruyi_rl.family.expansion import compressed_exit
from ruyi_rl.family.factorisation import MatrixReport, check_options, compress_matrices
from ruyi_rl.family.modeling_factored_qwen import factor_modules
from ruyi_rl.family.truncation import Factors

if TYPE_CHECKING:
    from ruyi_rl.family.model import Family


def check_compressible(family: Family, exit: str, ratio: float, method: str) -> None:
    """Raise ValueError unless the exit is there, expanded and not compressed, the ratio in (0, 1), the method known."""
    if exit not in family.config.exits:
        raise ValueError(f"no such exit: {exit!r}; this family has {list(family.config.exits)}")
    if not family.config.expansions[exit]:
        raise ValueError(f"{exit} is not expanded: only new blocks are compressed; {family.config.expansions}")
    if compressed_exit(family, exit):
        raise ValueError(f"{exit} is compressed already")
    check_options(ratio, method)


def compress(
    family: Family,
    exit: str,
    ratio: float,
    calibration: Iterable[Mapping[str, torch.Tensor]],
    method: str,
    progress: Callable[[str], None] | None = None,
) -> list[MatrixReport]:
    """Factorise an exit's new blocks and its head, in place. See `Family.compress`."""
    check_compressible(family, exit, ratio, method)
    modules = compressed_modules(family.config, exit)
    measured = collect_grams(family.branch(exit, copy=False), list(modules), calibration, progress)
    compressed = compress_matrices(
        weights={own: family.get_submodule(own).weight for own in modules.values()},
        grams={own: measured.grams[stock] for stock, own in modules.items()},
        groups={own: module_group(stock) for stock, own in modules.items()},
        ratio=ratio,
        method=method,
        progress=progress,
        tokens=measured.tokens,
    )
    apply_factors(family, exit, {name: found.factors for name, found in compressed.items()})
    return [found.report for found in compressed.values()]


@torch.no_grad()
def apply_factors(family: Family, exit: str, factors: Mapping[str, Factors]) -> None:
    """Put factors in the place of linear layers of an exit's own, in place; biases stay, `config.factor_ranks` follows.

    Args:
        factors: module name in the family -> factors, which are brought to the layer's dtype and device.

    Raises:
        ValueError: a module that is not the exit's own, factored already, or of another shape.
    """
    own, before = set(compressed_modules(family.config, exit).values()), {}
    for name, found in factors.items():
        if name not in own or name in family.config.factor_ranks:
            raise ValueError(f"{name} is no linear layer of {exit}'s new blocks or head that could get factors")
        before[name] = family.get_submodule(name)
        if (found.u.shape[0], found.v.shape[1]) != before[name].weight.shape:
            shapes = f"{tuple(found.u.shape)} and {tuple(found.v.shape)}"
            raise ValueError(f"factors {shapes} do not fit {name}, {tuple(before[name].weight.shape)}")
    ranks = {name: found.rank for name, found in factors.items()}
    factor_modules(family, ranks)
    for name, old in before.items():
        new = family.get_submodule(name)
        new.u.weight.copy_(factors[name].u)
        new.v.weight.copy_(factors[name].v)
        if old.bias is not None:
            new.u.bias = old.bias
        new.u.weight.requires_grad_(old.weight.requires_grad)
        new.v.weight.requires_grad_(old.weight.requires_grad)
        new.train(old.training)
    family.config.factor_ranks = {**family.config.factor_ranks, **ranks}
