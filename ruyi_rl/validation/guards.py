"""`evaluation.every`, `evaluation.max_drop` and `keep_best`."""

from __future__ import annotations

from collections.abc import Sequence

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.training.options import KEEP_BEST
from ruyi_rl.validation.values import require, require_choice


def check_quality_guards(config: RunConfig, stages: Sequence[str]) -> None:
    """Check what watches the exits while they are trained.

    Args:
        stages: of the run, in order.

    Raises:
        Refusal: an impossible value, a guard without the measurements that it judges by.
    """
    options, keep_best = config.evaluation, config.keep_best
    require_choice("keep_best", keep_best, (*KEEP_BEST, None))
    if options.every is None:
        for key, value in (("evaluation.max_drop", options.max_drop), ("keep_best", keep_best)):
            if value is not None:
                raise Refusal(key, f"{value!r} judges measurements during the training", "evaluation.every besides")
        return
    require("evaluation.every", options.every, options.every >= 1, "1 or more optimiser steps, or null")
    drop = options.max_drop
    require("evaluation.max_drop", drop, drop is None or 0 < drop < 1, "a share between 0 and 1 (0.05: 5 points)")
    if not options.problems:
        raise Refusal(
            "evaluation.every", f"{options.every}, but evaluation.problems=0 measures nothing", "evaluation.problems"
        )
    if "grpo" in stages and config.grpo.replay is not None:
        raise Refusal(
            "evaluation.every", f"{options.every}, but grpo.replay has no engine to measure with", "null, or no replay"
        )
