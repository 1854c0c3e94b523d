"""A training in which a backward pass leaves a trained parameter out is stopped; those of test_zero.py pass."""

from types import SimpleNamespace

import finite_run
import pytest
import torch
from finite_run import Case, build, cut_the_graph, unfreeze

from ruyi_rl.failure import StageFailed
from ruyi_rl.training.gradient_check import CHECKED_STEPS, GradientCheck
from tests.forked_ranks import run_ranks


@pytest.fixture
def folder(make_family, tmp_path):
    make_family().save_pretrained(tmp_path / "family")
    return tmp_path


@pytest.mark.parametrize(
    "kind, number, place",
    [
        ("sft", 1, "micro-batch 0, pass 0, of step 1"),
        ("sft", 4, "micro-batch 1, pass 0, of step 2"),
        ("grpo", 2, "micro-batch 0, pass 1, of step 1"),
    ],
)
def test_one_backward_pass_without_a_gradient_stops_the_run(folder, kind, number, place):
    """GRPO's micro-batches have several."""
    trainer = build(Case(kind, "none"), folder, None)
    cut_the_graph(trainer, number)
    with pytest.raises(
        StageFailed, match=rf"lm_head\.1\.weight, model\.eelayers.* and 9 more got no gradient in {place}"
    ):
        trainer.train()


@pytest.mark.parametrize("kind", ["sft", "recovery"])
def test_what_was_unfrozen_or_frozen_later_is_stopped_before_the_first_step(folder, kind):
    trainer = build(Case(kind, "none"), folder, None)
    unfreeze(trainer)
    with pytest.raises(StageFailed, match="forgotten would be trained, which no trained exit asks for"):
        trainer.train()
    trainer = build(Case(kind, "none"), folder, None)
    name = next(name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad)
    trainer.model.get_parameter(name).requires_grad_(False)
    with pytest.raises(StageFailed, match=f"{name} would not be trained"):
        trainer.train()


@pytest.mark.parametrize("kind", ["sft", "grpo", "recovery"])
def test_a_sound_training_passes_and_nothing_stays_in_its_way(folder, kind):
    trainer = build(Case(kind, "none"), folder, None, gradient_checkpointing=True)
    check = next(found for found in trainer.callback_handler.callbacks if isinstance(found, GradientCheck))
    steps = []

    def hooks() -> int:
        return len(trainer.model._forward_pre_hooks) + sum(
            len(parameter._backward_hooks or ()) for parameter in trainer.model.parameters()
        )

    run = check.on_step_end

    def on_step_end(*args, **kwargs):
        run(*args, **kwargs)
        steps.append((hooks(), trainer.accelerator.backward == check._backward))

    check.on_step_end = on_step_end
    before = hooks()
    trainer.train()
    assert steps[0][0] > before and not steps[0][1]
    assert steps[CHECKED_STEPS - 1 :] == [(before, True)] * (finite_run.STEPS - CHECKED_STEPS + 1)


def test_a_hook_counts_gradients_alone():
    model = torch.nn.Linear(2, 2)
    check = GradientCheck(SimpleNamespace(model=model))
    hook = check._reaches("weight")
    hook(None)
    assert not check._reached
    hook(torch.zeros(2, 2))
    assert check._reached == {"weight"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero3"])
def test_ranks_at_different_exits_are_all_stopped_before_they_wait_for_each_other(folder, mode):
    run_ranks("finite_run:stopped", mode, folder, ["exit", "unfrozen"], ranks=2, log=folder / "log")
    messages = [[(folder / f"{number}-rank-{rank}").read_text() for rank in range(2)] for number in range(2)]
    assert all(first == second for first, second in messages)
    left_out, unfrozen = (first for first, _ in messages)
    assert "rank 1: exits ['large', 'small'] are run in micro-batch 1, pass 0, of step 1" in left_out
    assert "rank 0" not in left_out and "lm_head.1.weight, model.eelayers.1." in left_out
    assert "rank 0: forgotten would be trained" in unfrozen and "rank 1: forgotten would be trained" in unfrozen
