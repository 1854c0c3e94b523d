import pytest
import torch
from datasets import Dataset

from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.rows import FamilySampler, balanced_chunks, block_layout, expand_rows

EXITS = ["large", "small"]


@pytest.mark.parametrize("world, steps, size", [(1, 2, 12), (2, 3, 8), (4, 1, 24)])
def test_every_rank_and_micro_batch_holds_every_exit(world, steps, size):
    samples = 4
    plan = plan_batches(size, steps, samples, len(EXITS), world)
    rows = expand_rows(Dataset.from_dict({"prompt": [f"p{i}" for i in range(50)]}), EXITS)
    drawn = [rows[index] for index in FamilySampler(50, plan, repeat_count=1, seed=3)]
    assert len(drawn) == 50 // plan.prompts * plan.completions
    batch = drawn[: plan.completions]
    assert len({row["prompt"] for row in batch}) == plan.prompts
    local = plan.completions // world
    assert plan.micro_batch_rows == size
    for rank in range(world):
        mine = batch[rank * local : (rank + 1) * local]
        layout = block_layout(local, len(EXITS), samples)
        assert [row["exit"] for row in mine] == [EXITS[exit] for exit in layout.exit_ids]
        for block in layout.prompt_ids.unique():
            prompts = {row["prompt"] for row, number in zip(mine, layout.prompt_ids) if number == block}
            assert len(prompts) == 1
        chunks = balanced_chunks(layout.exit_ids, len(EXITS), steps)
        assert sorted(torch.cat(chunks).tolist()) == list(range(local))
        for chunk in chunks:
            assert layout.exit_ids[chunk].tolist() == [0] * (size // 2) + [1] * (size // 2)


def test_batches_repeat_as_in_trl():
    plan = plan_batches(16, 1, 4, 2, 1)
    once = list(FamilySampler(8, plan, repeat_count=1, seed=1))
    twice = list(FamilySampler(8, plan, repeat_count=2, seed=1))
    assert twice == once[:16] * 2 + once[16:32] * 2 + once[32:48] * 2 + once[48:] * 2
    assert len(FamilySampler(8, plan, repeat_count=2)) == len(twice)


def test_a_pass_depends_on_its_number_alone():
    plan = plan_batches(16, 1, 4, 2, 1)
    whole = FamilySampler(9, plan, seed=1)
    passes = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        passes.append(list(whole))
    assert passes[0] != passes[1] != passes[2]
    resumed = FamilySampler(9, plan, seed=1)
    resumed.set_epoch(2)
    assert list(resumed) == passes[2]
    assert all(len(once) == 4 * 16 == len(whole) for once in passes)  # the ninth prompt fills no batch


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((8, 1, 1, 2, 1), "at least 2 samples"),
        ((7, 4, 2, 2, 1), "multiple of the 2 exits.*nearest: 6 or 8"),
        ((6, 1, 4, 2, 1), "= 6 rows a rank.*2 exits x 4 samples = 8 rows; nearest: 8"),
    ],
)
def test_batches_that_do_not_divide_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_batches(*arguments)


def test_uneven_rows_are_refused():
    with pytest.raises(ValueError, match="2, 1"):
        balanced_chunks(torch.tensor([0, 0, 1]), 2, 1)
    with pytest.raises(ValueError, match="whole prompts"):
        block_layout(7, 2, 2)
