"""The ranks of test_continued_ranks.py: a run that fails in mid-training, as each rank of it."""

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.pipeline import run_stages
from ruyi_rl.training.callbacks import StopOnSignal


def fail_at(config: RunConfig, step: int) -> None:
    """Runs the stages until the end of an optimiser step."""
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise RuntimeError(f"out of luck at {step}")
        return original(self, args, state, control, **kwargs)

    StopOnSignal.on_step_end = on_step_end
    try:
        run_stages(config, [])
    except StageFailed as failed:
        print(failed)
        return
    raise AssertionError("it did not fail")
