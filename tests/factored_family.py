"""A family with factors that no compression has made: random ones, so that every one of them matters."""

import torch
from torch import nn

from ruyi_rl.family.modeling_factored_qwen import factor_modules


def with_factors(family, exit, blocks=2, rank=7, std=0.1):
    """Expands an exit and factors the linear layers of its new blocks, but for k_proj, and a head of its own.

    The ranks count on from `rank`, so that no two layers of a kind can be exchanged unseen.
    """
    family.expand(exit, blocks)
    index, generator = list(family.exits).index(exit), torch.Generator().manual_seed(3)
    prefixes = (f"model.expansions.{index}.", f"lm_head.{index}")
    names = [
        name
        for name, module in family.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefixes) and not name.endswith("k_proj")
    ]
    ranks = {name: rank + number for number, name in enumerate(names)}
    factor_modules(family, ranks)
    family.config.factor_ranks = ranks
    with torch.no_grad():
        for name, parameter in family.named_parameters():
            if name.startswith(prefixes):
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return family.eval()
