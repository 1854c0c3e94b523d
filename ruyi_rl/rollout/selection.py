"""Which rollout back end a run uses."""

from __future__ import annotations

from ruyi_rl.rollout.options import BACKENDS, RolloutOptions
from ruyi_rl.rollout.worker import RolloutWorker


def make_rollout(options: RolloutOptions, family, tokenizer) -> RolloutWorker:
    """The worker that the options name; `auto` is transformers' generate, the one back end of this version.

    Raises:
        ValueError: an unknown back end.
    """
    if options.backend not in BACKENDS:
        raise ValueError(f"rollout.backend must be one of {', '.join(BACKENDS)}, not {options.backend!r}")
    from ruyi_rl.rollout.transformers import TransformersRollout

    return TransformersRollout(family, tokenizer, options.batch_size)
