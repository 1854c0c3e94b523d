"""The unused-parameter trap: in the first steps of a training every backward pass must reach all that is trained.

Where a micro-batch leaves a trained parameter out, ZeRO-3 adds what comes later to the gradient of the update before,
in silence; where only some ranks leave it out, ZeRO's collectives no longer match, and ranks wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from ruyi_rl import ranks
from ruyi_rl.failure import StageFailed
from ruyi_rl.family import Family
from ruyi_rl.family.weights import expansion_parameters, parameters_of

CHECKED_STEPS = 2
"""Optimiser steps: ZeRO-3's first one is right even so."""
NAMED = 4
"""Parameters that a message names."""


class GradientCheck(TrainerCallback):
    """In the first steps of a training, a resumed one too, watches three things and stops all ranks where one fails:

    - before the first step: that is trained which the exits ask for, and nothing else;
    - before every forward pass with gradients: all ranks run exactly the trained exits. This is asked before the pass,
      since under ZeRO-3 ranks at different exits would wait for each other in it;
    - in every backward pass, of which a micro-batch may have several: each trained parameter gets a gradient.

    After these steps nothing of it is left in the way.

    Args:
        trainer: a family's; made when its model is as it is to be trained.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._trained = _trained_names(trainer)
        self._handles: list[Any] = []
        self._reached: set[str] = set()
        self._problem: str | None = None  # the first one that this rank has seen
        self._steps = self._micro_batch = self._pass = 0

    def on_train_begin(self, args, state, control, **kwargs):
        model = self.trainer.model
        now = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if now - self._trained:
            self._note(f"{_named(now - self._trained)} would be trained, which no trained exit asks for")
        elif self._trained - now:
            self._note(f"{_named(self._trained - now)} would not be trained, though a trained exit asks for it")
        self._agree()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._reaches(name)))
        if isinstance(model, Family):
            self._exits = set(self.trainer.exits)
            self._handles.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        accelerator = self.trainer.accelerator
        self._backward = accelerator.backward
        accelerator.backward = self._watched_backward

    def on_substep_end(self, args, state, control, **kwargs):
        if self._handles:
            self._agree()
            self._micro_batch, self._pass = self._micro_batch + 1, 0

    def on_step_end(self, args, state, control, **kwargs):
        if not self._handles:
            return
        self._agree()
        self._steps, self._micro_batch, self._pass = self._steps + 1, 0, 0
        if self._steps == CHECKED_STEPS:
            self.trainer.accelerator.backward = self._backward
            while self._handles:
                self._handles.pop().remove()

    def _reaches(self, name: str):
        def hook(gradient: torch.Tensor | None) -> None:
            if gradient is not None:
                self._reached.add(name)

        return hook

    def _watched_backward(self, loss: torch.Tensor, **kwargs) -> None:
        self._reached.clear()
        self._backward(loss, **kwargs)
        missing = [name for name in sorted(self._trained) if name not in self._reached]
        if missing:
            self._note(f"{_named(missing)} got no gradient in {self._place()}")
        self._pass += 1

    def _before_forward(self, model: Family, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        run = _exits_of_call(model, kwargs)
        if run != self._exits:
            unused = self._trained - parameters_of(model.config, run, self._trained)
            got = f": {_named(unused)} would get no gradient" if unused else ""
            self._note(f"exits {sorted(run)} are run in {self._place()}, where {sorted(self._exits)} are trained{got}")
        self._agree()

    def _place(self) -> str:
        return f"micro-batch {self._micro_batch}, pass {self._pass}, of step {self.trainer.state.global_step + 1}"

    def _note(self, problem: str) -> None:
        self._problem = self._problem or problem

    def _agree(self) -> None:
        """Raises StageFailed, on every rank, where any rank has noted a problem."""
        found = ranks.gathered(self._problem)
        if any(found):
            problems = "; ".join(f"rank {rank}: {problem}" for rank, problem in enumerate(found) if problem)
            raise StageFailed(
                f"this training would go wrong in silence; nothing of it was saved. {problems}. Every micro-batch must "
                "hold every trained exit on every rank, and all else must be frozen before the trainer is made "
                "(freeze_others)"
            )


def _trained_names(trainer) -> set[str]:
    """What the trainer's exits ask for; for a model without exits, what is trainable when the trainer is made."""
    model = trainer.model
    names = [name for name, _ in model.named_parameters()]
    if not isinstance(model, Family):
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trainer.train_only is not None:
        return expansion_parameters(model.config, trainer.exits, names)
    return parameters_of(model.config, trainer.exits, names)


def _exits_of_call(model: Family, kwargs: Mapping[str, Any]) -> set[str]:
    """The exits that a call of the family with these arguments runs."""
    if kwargs.get("pack") is not None:
        return set(kwargs["pack"].exits)
    exits = kwargs.get("exits")
    if exits is None:
        return set(model.exits)
    return {exits} if isinstance(exits, str) else set(exits)


def _named(names: Sequence[str] | set[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
