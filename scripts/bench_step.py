"""One training step by hand, so that each of its phases can be timed: log-probs, forward, backward, optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import Trainer


@dataclass
class Learner:
    """A model in its trainer, and the step's rows."""

    trainer: Trainer
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], torch.Tensor]
    """Forward pass of the update."""
    old: Callable[[], object] | None = None
    """The pass for old log-probs, without gradients; None: the step has none."""
    max_grad_norm: float = 1.0

    @classmethod
    def of(cls, trainer, loss, old=None) -> Learner:
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return cls(trainer, trainer.model, trainer.create_optimizer(), loss, old, trainer.args.max_grad_norm)

    def optimise(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def settle() -> None:
    """Waits for the device, whose kernels run behind the Python code."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step(learners: Sequence[Learner]) -> dict[str, float]:
    """A step of each learner, one after the other: seconds of each part, summed."""
    seconds = dict.fromkeys(("old", "forward", "backward", "optimiser"), 0.0)
    for learner in learners:
        if learner.old is not None:
            start = time.perf_counter()
            learner.old()
            settle()
            seconds["old"] += time.perf_counter() - start
        start = time.perf_counter()
        loss = learner.loss()
        settle()
        forwarded = time.perf_counter()
        loss.backward()
        settle()
        gone_back = time.perf_counter()
        learner.optimise()
        settle()
        seconds["forward"] += forwarded - start
        seconds["backward"] += gone_back - forwarded
        seconds["optimiser"] += time.perf_counter() - gone_back
    return seconds


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    """Parameter -> gradient of one update, which is not taken."""
    learner.loss().backward()
    found = {name: p.grad.detach() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.optimizer.zero_grad(set_to_none=True)
    return found


def gradient_error(ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """Largest ‖ours - expected‖ / ‖expected‖ over the parameters, and where it is.

    Raises:
        ValueError: other parameters have gradients, or there is nothing to compare.
    """
    if ours.keys() != expected.keys():
        raise ValueError(f"gradients of other parameters: {sorted(ours.keys() ^ expected.keys())[:4]} …")
    if not any(gradient.any() for gradient in expected.values()):
        raise ValueError("all gradients are 0: they prove nothing")
    errors = {
        name: float((ours[name].float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-30))
        for name, theirs in expected.items()
    }
    worst = max(errors, key=errors.get)
    return errors[worst], worst
