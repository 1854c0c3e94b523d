"""What a GRPO trainer's checkpoint holds of its rollouts: those that several updates use are not drawn twice."""

from __future__ import annotations

from ruyi_rl.rollout.record import ReplayRollout
from ruyi_rl.training.run_state import RunState, batches_of, flat_batches


class KeptRollouts:
    """Mixed into FamilyGRPOTrainer."""

    def run_state(self) -> RunState:
        """As every trainer's, and the rollouts that further updates use."""
        state = super().run_state()
        state.values |= {
            "micro_steps": self._step,
            "drawn": dict(self._drawn),
            "step_time": self._current_train_step_time,
        }
        if isinstance(self.rollout, ReplayRollout):
            state.values["replayed"] = self.rollout.taken()
        if self._step % (self.args.steps_per_generation * self.num_iterations) and self._buffered_inputs is not None:
            kept = flat_batches(self._buffered_inputs, "rollouts")
            state = RunState(state.values | kept.values, kept.tensors)
        return state

    def set_run_state(self, state: RunState, same_ranks: bool) -> None:
        super().set_run_state(state, same_ranks)
        values = state.values
        self._drawn = {mode: tuple(draw) for mode, draw in values["drawn"].items()}
        self._current_train_step_time = values["step_time"]
        if same_ranks:
            self._step = values["micro_steps"]
            self._buffered_inputs = batches_of(state, "rollouts", self.accelerator.device)
        if "replayed" in values:
            self.rollout.skip(values["replayed"])
