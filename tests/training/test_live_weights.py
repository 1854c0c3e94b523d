"""Generating with a training's weights between two of its steps, and what of it the training notices: nothing."""

import random

import numpy
import torch
from transformers import TrainerCallback

from ruyi_rl.family import Family
from ruyi_rl.rollout.worker import Request, Sampling
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.live_weights import live_weights, store_as
from tests.training.test_grpo_trainer import PROMPTS, Parrot, config, share_of_digits


class Noted(Parrot):
    """An engine that notes in which order it is sent weights and asked."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def update_weights(self, family):
        self.calls.append("weights")
        super().update_weights(family)

    def generate(self, requests, sampling):
        self.calls.append(f"{len(requests)} requests")
        return super().generate(requests, sampling)


class AfterEachStep(TrainerCallback):
    def __init__(self, do):
        self.do = do

    def on_step_end(self, args, state, control, **kwargs):
        self.do()


def trainer_of(family, tokenizer, folder, rollout=None, **changes):
    return FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=config(folder, **changes),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout=rollout,
    )


def test_an_engine_is_sent_the_weights_again_before_the_next_rollouts(make_family, tokenizer, tmp_path):
    """Which empties its prefix cache of what the measurement has put there."""
    engine = Noted()
    trainer = trainer_of(make_family(), tokenizer, tmp_path, engine)

    def measure():
        with live_weights(trainer, engine):
            engine.generate([Request("small", [1, 2])], Sampling(4))

    trainer.add_callback(AfterEachStep(measure))
    trainer.train()
    assert engine.calls == ["weights", "24 requests", "weights", "1 requests"] * 2


def test_modes_and_random_states_are_put_back(make_family, tokenizer, tmp_path):
    trainer = trainer_of(make_family(), tokenizer, tmp_path, max_steps=1, gradient_checkpointing=True)
    seen = []

    def state():
        model = trainer.model
        numbers = numpy.random.get_state()[2]
        return (
            model.training,
            model.is_gradient_checkpointing,
            random.getstate(),
            numbers,
            torch.get_rng_state().tolist(),
        )

    def measure():
        before = state()
        with live_weights(trainer, trainer.rollout):
            assert not trainer.model.is_gradient_checkpointing
            random.random(), numpy.random.rand(), torch.rand(1)
            trainer.rollout.generate([Request("small", [60, 61])], Sampling(4))
        seen.append(before == state())

    trainer.add_callback(AfterEachStep(measure))
    trainer.train()
    assert seen == [True] and trainer.model.training


def test_a_saved_family_is_stored_anew_in_another_dtype(make_family, tmp_path):
    family = make_family()
    family.save_pretrained(tmp_path / "wide", max_shard_size="20KB")
    assert len([*(tmp_path / "wide").glob("*.safetensors")]) > 1
    store_as(tmp_path / "wide", torch.bfloat16)
    narrow = Family.from_pretrained(tmp_path / "wide", dtype="auto")
    assert narrow.dtype == torch.bfloat16 and len([*(tmp_path / "wide").glob("*.safetensors*")]) == 1
    for name, tensor in family.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], tensor.bfloat16())
