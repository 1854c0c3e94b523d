"""The benches' operation counts against torch's own counter and against masks that are written out."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench_arithmetic as arithmetic
import bench_grpo
import bench_sft
from bench_family import Shape, family_of, shape_of

SHAPE = Shape({"small": 0, "medium": 1, "large": 3}, 24, 40, 4, 2, 8, 50)


def added_product(_, left, right, **kwargs) -> int:
    """(m, k) and (k, n): operations of their product."""
    return 2 * left[0] * left[1] * right[1]


def products(run, *arguments, **named) -> int:
    """Operations of the matrix products that a call makes; attention's kernels are not among them."""
    # TRL's head adds its gradients up in place, which the counter does not know by itself.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product}) as counter:
        run(*arguments, **named)
    found = counter.get_flop_counts()["Global"]
    return sum(found.get(product, 0) for product in (torch.ops.aten.mm, torch.ops.aten.addmm_))


def family(shape=SHAPE):
    return family_of(shape).train()


@pytest.fixture
def case():
    return bench_grpo.Case(prompt=7, completion=6, samples=2, uneven=True, prompts=2)


def test_a_familys_layers_and_heads_compute_what_is_counted(case):
    from ruyi_rl.training.packing import pack_rows

    model, batch = family(), bench_grpo.batch_of(case, SHAPE, "cpu")
    packed = pack_rows(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        batch["prompt_numbers"],
        batch["exit_ids"],
        SHAPE.deepest_first,
    )
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "pack": packed.pack}
    *_, work = bench_grpo.work_of(case, SHAPE, "cpu")
    assert products(model, **inputs, output="hidden_states") == work.layers
    assert products(model, **inputs, output="log_probs") == work.layers + work.heads
    loss = sum(values.sum() for values in model(**inputs, output="log_probs").log_probs.values())
    assert products(loss.backward) == 2 * work.layers + 3 * work.heads


def test_stock_branches_compute_what_is_counted(case):
    batch = bench_grpo.batch_of(case, SHAPE, "cpu")
    work, scored, _ = bench_grpo.work_of(case, SHAPE, "cpu")
    counted = 0
    for exit, name in enumerate(SHAPE.deepest_first):
        rows = batch["exit_ids"] == exit
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[rows]
        branch = family().branch(name)
        counted += products(branch.model, ids)
        counted += products(branch.lm_head, torch.zeros(len(ids) * (ids.shape[1] - 1), SHAPE.hidden))
    assert counted == work.layers + work.heads
    assert scored.layers == work.layers
    tokens = int(batch["completion_mask"].sum())
    assert scored.heads == 2 * SHAPE.hidden * SHAPE.vocabulary * tokens < work.heads


def test_joint_sft_computes_what_is_counted():
    from ruyi_rl.training.packing import pack_sequences

    case = bench_sft.Case(rows=3, length=9, uneven=True)
    batch = bench_sft.batch_of(case, SHAPE, "cpu")
    positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    packed = pack_sequences(
        batch["input_ids"], batch["attention_mask"], batch["labels"], positions, SHAPE.deepest_first
    )
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "pack": packed.pack}
    separate, _, joint = bench_sft.work_of(case, SHAPE, "cpu")
    assert products(family(), **inputs, output="log_probs") == joint.layers + joint.heads
    counted = 0
    for name in SHAPE.exits:
        counted += products(family().branch(name), batch["input_ids"][:, :-1])
        # The last column runs through the layers, and predicts nothing.
        counted += 2 * sum(w.numel() for n, w in family().branch(name).named_parameters() if "proj" in n) * case.rows
    assert counted == separate.layers + separate.heads


def test_attention_counts_the_pairs_that_are_seen():
    prompt, lengths = 5, (4, 1, 3)

    def pairs(work: arithmetic.Work) -> float:
        return work.attention / (4 * SHAPE.heads * SHAPE.head_dim)

    # A completion's last token is not computed.
    owners = [-1] * prompt + [row for row, length in enumerate(lengths) for _ in range(length - 1)]
    seen = sum(owners[key] in (-1, owners[query]) for query in range(len(owners)) for key in range(query + 1))
    work = arithmetic.shared_grpo(SHAPE, [prompt], {"large": [lengths]})
    assert pairs(work) == seen * 4
    own = seen - arithmetic.triangle(prompt)
    both = arithmetic.shared_grpo(SHAPE, [prompt], {"large": [lengths], "small": [lengths]})
    # The prompt runs every trunk layer once and each exit's own; the small exit's completions one layer.
    assert pairs(both) == seen * 4 + arithmetic.triangle(prompt) + own
    width = prompt + max(lengths)
    padded = arithmetic.separate_grpo(SHAPE, [prompt], {"large": [lengths]}, every_token_scored=False)
    assert pairs(padded) == sum(key <= query for query in range(width) for key in range(width)) * len(lengths) * 4


def test_ruyi2_has_the_token_layers_of_its_report():
    """P = 256, R = 64, G = 8: 166 thousand token-layers a prompt by separate runs, 44 thousand by the family."""
    shape = shape_of("ruyi2")
    case = bench_grpo.Case(256, 64, 8, uneven=False)
    one = arithmetic.layer_work(shape, 1, 0).layers
    separate, _, shared = bench_grpo.work_of(case, shape, "cpu")
    assert separate.layers / one == 8 * 320 * (3 + 22 + 40) == 166400
    assert shared.layers / one == 256 * 42 + 8 * 63 * (3 + 22 + 40) == 43512


def test_backward_counts_more_than_forward():
    work = arithmetic.Work(layers=10, attention=4, heads=2)
    assert (work.forward, work.backward) == (16, 20 + 10 + 6)
