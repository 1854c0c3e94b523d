"""ZeRO's gradients between the last backward pass of an update and the optimiser's step: which are finite, and how an
update is discarded.

tests/training/test_finite_updates_ranks.py holds what is relied on here against DeepSpeed itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def local_gradients(optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """(parameter's name, this rank's part of its gradient), unclipped, scaled by the loss scale.

    Where the optimiser is offloaded these are the parts' norms, which is what ZeRO keeps at hand.

    Args:
        optimizer: DeepSpeed's, of ZeRO-1, 2 or 3.
    """
    names = optimizer.param_names
    if norms := getattr(optimizer, "norm_for_param_grads", None):
        by_id = {optimizer.get_param_id(part): name for part, name in names.items() if part.requires_grad}
        yield from ((by_id[number], torch.as_tensor(norm)) for number, norm in norms.items())
        return
    groups = optimizer.fp16_groups if hasattr(optimizer, "fp16_groups") else optimizer.params_in_partition
    for group, gradients in optimizer.averaged_gradients.items():
        # ZeRO pads a partition's end with zeros that belong to no parameter.
        own = [gradient for gradient in gradients or () if not getattr(gradient, "_zero_padding", False)]
        yield from ((names[parameter], gradient) for parameter, gradient in zip(groups[group], own))


def spoil(optimizer) -> None:
    """Makes the gradient NaN, so that ZeRO discards the update as any that is not finite: weights, moments and the
    schedule stay, and the buffers are emptied in its own way.
    """
    if norms := getattr(optimizer, "norm_for_param_grads", None):
        for number in norms:
            norms[number] = torch.tensor(torch.nan)
    for _, gradient in local_gradients(optimizer):
        gradient.fill_(torch.nan)
