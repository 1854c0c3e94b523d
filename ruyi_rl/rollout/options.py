"""`rollout`: who generates completions. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("auto", "transformers")
"""What `backend` may be."""


@dataclass
class RolloutOptions:
    """The `rollout` group."""

    backend: str = "auto"
    """`transformers`, or `auto`: the fastest back end that this version has and this machine can run."""
    batch_size: int = 256
    """Most sequences in one generate call of an exit."""
