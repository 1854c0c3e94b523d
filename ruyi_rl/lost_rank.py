"""What an error of the network between ranks means. Importing this module imports no torch."""

from __future__ import annotations

import sys
from socket import gethostname

from ruyi_rl import ranks
from ruyi_rl.heart import Heart


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank no longer answers: it has ended, or its host has."""
    torch = sys.modules.get("torch")
    # gloo's errors have no type of their own.
    return "gloo/transport" in str(error) or (torch is not None and isinstance(error, torch.distributed.DistError))


def lost_rank(error: str, heart: Heart) -> str:
    """The same for the user.

    Args:
        error: on one line.
    """
    return (
        f"rank {ranks.rank()} (host {gethostname()}) lost another rank in {heart.phase} after step {heart.step}; "
        f"what ended that one stands in its own output ({error})"
    )
