"""Several backward passes inside one micro-batch of a trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType


@contextmanager
def accumulating(accelerator: Accelerator, model: torch.nn.Module) -> Iterator[None]:
    """Forward and backward in here add to the gradients; no rank waits for another's, and nothing is stepped."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    synchronised = accelerator.sync_gradients
    accelerator.sync_gradients = False
    try:
        # DeepSpeed learns it from the flag at each backward.
        with nullcontext() if deepspeed else accelerator.no_sync(model):
            yield
    finally:
        accelerator.sync_gradients = synchronised


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """The backward of a loss that is already divided by what its accumulation asks for."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
