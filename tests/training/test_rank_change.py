import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.rank_change import RankChange

GRPO = {"per_device_train_batch_size": 12, "num_generations": 4, "gradient_accumulation_steps": 4}
"""Of three exits: a micro-batch is one prompt."""


def rows(trainer, ranks, size=1):
    return trainer.get("gradient_accumulation_steps", 1) * ranks * trainer.get("per_device_train_batch_size", size)


@pytest.mark.parametrize("began_on", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 6, 16])
def test_a_step_has_as_many_rows_on_every_number_of_ranks_that_goes(began_on, accumulation):
    given = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-3}
    for now in range(1, 50):
        change = RankChange(began_on, now)
        if began_on * accumulation % now:
            with pytest.raises(ValueError, match="micro-batches"):
                change.scaled(given, "sft")
            continue
        scaled = change.scaled(given, "sft")
        assert rows(scaled, now) == rows(given, began_on) and scaled["learning_rate"] == 1e-3
        # Back on the ranks of the beginning, it is the config's step again.
        assert RankChange(began_on, began_on).scaled(given, "sft") == given


def test_the_default_is_scaled_where_nothing_is_given():
    assert RankChange(4, 2).scaled({}, "sft") == {"gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match="4 ranks x gradient_accumulation_steps 1 = 4 micro-batches"):
        RankChange(4, 8).scaled({}, "sft")


@pytest.mark.parametrize("generation", [{}, {"steps_per_generation": 8}, {"generation_batch_size": 192}])
def test_as_many_prompts_are_answered_at_once(generation):
    trainer = {**GRPO, **generation}

    def prompts(scaled, ranks):
        size = scaled["per_device_train_batch_size"]
        steps = scaled.get("generation_batch_size", 0) // (size * ranks) or scaled.get("steps_per_generation")
        steps = steps or scaled["gradient_accumulation_steps"]
        return plan_batches(size, steps, 4, 3, ranks).prompts

    for now in (1, 2, 4):
        scaled = RankChange(2, now).scaled(trainer, "grpo")
        RankChange(2, now).require("grpo.trainer", trainer, "grpo", 3)
        assert rows(scaled, now) == rows(trainer, 2) and prompts(scaled, now) == prompts(trainer, 2)


@pytest.mark.parametrize(
    ("change", "trainer", "kind", "problem", "allowed"),
    [
        (RankChange(2, 3), {"gradient_accumulation_steps": 4}, "sft", "8 micro-batches", "1 or 2 or 4 or 8 ranks"),
        # A group of eight is two micro-batches: no rank can do with one.
        (RankChange(2, 8), {**GRPO, "num_generations": 8}, "grpo", "whole prompts", "1 or 2 or 4 ranks"),
        (RankChange(2, 4), {**GRPO, "generation_batch_size": 24}, "grpo", "12 x 4 ranks", "1 or 2 ranks"),
        (RankChange(2, 4), {**GRPO, "steps_per_generation": 1}, "grpo", "steps_per_generation 1", "1 or 2 ranks"),
        (
            RankChange(2, 4),
            {"gradient_accumulation_steps": 4, "train_sampling_strategy": "group_by_length"},
            "sft",
            "train_sampling_strategy=group_by_length",
            "2 ranks",
        ),
    ],
)
def test_ranks_that_do_not_go_are_refused_with_those_that_do(change, trainer, kind, problem, allowed):
    with pytest.raises(Refusal) as refused:
        change.require(f"{kind}.trainer", trainer, kind, 3)
    assert refused.value.key == "num_processes"
    assert f"began on 2 ranks, this run has {change.now}" in refused.value.problem and problem in refused.value.problem
    assert refused.value.allowed == f"{allowed}, or fresh=true to start over"
