import io
import math

import pytest
from rich.console import Console

from ruyi_rl.report.batch import Prompts, StepPlan, grpo_steps, plan_table, print_plan, sft_steps
from ruyi_rl.report.memory import MemoryReport, byte_size
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.memory import training_state
from ruyi_rl.training.memory_estimate import Engines, MemoryEstimate
from ruyi_rl.training.rows import FamilySampler


def plan(**changes):
    values = {
        "world_size": 2,
        "micro_batch": 24,
        "micro_batches": 4,
        "optimiser_steps": 60,
        "prompts": Prompts(rows=1000, longest=40, limit=64, left_out=3),
        "longest_row": 140,
        "weights": {"1.7B": 3_538_000_000, "family": 33_960_000_000},
        "exits": 3,
        "generations": 8,
        "generation_batch": 192,
    }
    return StepPlan(**{**values, **changes})


def test_the_batch_arithmetic():
    found = plan()
    assert found.rows_per_step == 24 * 2 * 4 == 192
    assert found.prompts_per_generation == 8 and 8 * 3 * 8 == 192
    assert found.tokens_per_step == 192 * 140


@pytest.mark.parametrize("prompts", [8, 9, 100])
@pytest.mark.parametrize(("world", "size", "steps", "accumulation", "iterations"), [(1, 24, 1, 1, 1), (2, 12, 4, 2, 3)])
def test_grpo_steps_equal_what_the_trainer_counts(prompts, world, size, steps, accumulation, iterations):
    batches = plan_batches(size, steps, num_generations=4, exits=3, world_size=world)
    rows = len(FamilySampler(prompts, batches, repeat_count=iterations * steps))
    # transformers: rows over batches of all ranks, then optimiser steps an epoch, then epochs.
    batches_a_rank = math.ceil(rows / (size * steps * world))
    expected = math.ceil(2.5 * max(1, math.ceil(batches_a_rank / accumulation)))
    assert grpo_steps(prompts, batches.prompts, iterations * steps / accumulation, 2.5, -1) == expected


def test_max_steps_wins():
    assert grpo_steps(1000, 8, 1, 3, 17) == sft_steps(1000, 8, 1, 1, 3, 17) == 17


@pytest.mark.parametrize(
    ("sequences", "world", "accumulation", "steps"), [(100, 1, 1, 13), (100, 1, 4, 4), (101, 2, 1, 7), (1, 1, 4, 1)]
)
def test_sft_steps_of_an_epoch(sequences, world, accumulation, steps):
    assert sft_steps(sequences, 8, world, accumulation, 1, -1) == steps
    assert sft_steps(sequences, 8, world, accumulation, 3, -1) == 3 * steps


def shown(found):
    console = Console(width=120, file=io.StringIO())
    console.print(plan_table(found))
    return " ".join(console.file.getvalue().split())


def test_the_table_shows_the_arithmetic():
    text = shown(plan())
    assert "ranks 2" in text
    assert "completions at once 192 8 prompts × 3 exits × G 8" in text
    assert "completions a step 192 24 a rank × 2 ranks × 4 micro-batches" in text
    assert "tokens a step, at most 26,880 140 tokens a row" in text
    assert "optimiser steps 60 1,000 training rows" in text
    assert "longest prompt 40 tokens; limit 64, 3 rows over it left out" in text
    assert "weights of 1.7B 3.54 GB its branch" in text and "weights of family 34 GB the whole family" in text


@pytest.mark.parametrize(
    ("budget", "text"),
    [(None, "in one pack"), (8192, "in one pack"), (1000, "then in about 3 packs of at most 1,000")],
)
def test_the_table_shows_what_packs_compute(budget, text):
    # One prompt of 40 tokens, and 24 completions of at most 100, whose last token predicts nothing.
    wanted = f"tokens a micro-batch, packed 2,416 at most, each prompt once; {text}"
    assert wanted in shown(plan(packed=True, token_budget=budget))
    assert "packed" not in shown(plan()) and "packed" not in shown(plan(packed=True, generation_batch=None))


@pytest.mark.parametrize("rows", range(1, 20))
@pytest.mark.parametrize("generations", [1, 4, 6])
def test_packed_tokens_count_every_prompt_of_a_micro_batch(rows, generations):
    """Micro-batches take an exit's rows in order, and need not end where a prompt does."""
    numbers = [sample // generations for sample in range(rows * generations)]
    most = max(len(set(numbers[start : start + rows])) for start in range(0, len(numbers), rows))
    found = shown(plan(packed=True, micro_batch=3 * rows, generations=generations, generation_batch=1))
    assert f"packed {most * 40 + 3 * rows * 99:,} at most" in found


def test_where_nothing_is_generated_rows_are_sequences():
    text = shown(plan(generation_batch=None, exits=1, generations=1, prompts=Prompts(1000, 140, None, 0)))
    assert "sequences a step 192" in text and "completions" not in text and "no limit" in text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1468736, "1.47 MB"), (34e12, "34 TB")])
def test_sizes_have_three_digits(size, text):
    assert byte_size(size) == text


def test_the_plan_ends_with_the_memory():
    state = training_state("zero2", ranks=8, trained=1_000_000_000, frozen=0, bits16=True)
    estimate = MemoryEstimate(state, 10**9, 10**8, 0, 0, Engines(), 0)
    console = Console(width=120, file=io.StringIO())
    print_plan(console, plan(memory=MemoryReport(estimate, "cuda", 24 * 10**9, True)))
    text = " ".join(console.file.getvalue().split())
    assert "memory of a rank 3.75 GB weights 2 GB, gradients 250 MB, float32 masters 500 MB, AdamW 1 GB" in text
    assert "4.85 GB while training; an estimate; 24 GB are there" in text and "are needed" not in text
    print_plan(console, plan(memory=MemoryReport(estimate, "cuda", 4 * 10**9, True)))
    assert "about 4.85 GB are needed on a rank, and the GPU has 4 GB: a higher deepspeed=" in console.file.getvalue()
