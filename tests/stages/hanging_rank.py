"""What the ranks of test_hanging_rank.py do: a run in which rank 1 is slow for a step, and hangs in another."""

import threading
import time

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import run_stages
from ruyi_rl.rollout.transformers import BeatOfTokens, TransformersRollout


def run(config: RunConfig, slow: int, hangs: int, seconds: float) -> None:
    """Runs the stages; on rank 1 each token of rollout `slow` takes `seconds`, and rollout `hangs` never ends."""
    if ranks.rank() == 1:
        hinder(slow, hangs, seconds)
    run_stages(config, ["stage=grpo"])


def hinder(slow: int, hangs: int, seconds: float) -> None:
    generate, beat, count = TransformersRollout.generate, BeatOfTokens.__call__, 0

    def hindered(self, *args):
        nonlocal count
        count += 1
        if count == hangs:
            threading.Event().wait()
        return generate(self, *args)

    def slowly(self, *args, **kwargs):
        if count == slow:
            time.sleep(seconds)
        return beat(self, *args, **kwargs)

    TransformersRollout.generate, BeatOfTokens.__call__ = hindered, slowly
