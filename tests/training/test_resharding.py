"""Runs continued on another number of ranks, or in another ZeRO mode, against the same runs uninterrupted."""

import json
from pathlib import Path

import pytest
import torch
from resharding_run import STEPS, STOP, Leg
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.training.resharding import fitted
from tests.forked_ranks import run_ranks

ROUNDING = 5e-5
"""How far weights may be apart after the further steps, relative to what these have moved them by.

Measured: at most 8e-6 in float32, and 7e-3 where the engine computes in bfloat16.
"""
# Without DeepSpeed first: a process that has used it once is never without it again.
UNINTERRUPTED = {
    1: [Leg("one, off", "off"), Leg("recovery on one", "off", kind="recovery")],
    2: [
        Leg("two, off", "off"),
        Leg("two, zero2", "zero2"),
        Leg("two, zero3", "zero3", cut=3000),
        Leg("grpo on two", "zero2", kind="grpo"),
    ],
    4: [Leg("four, zero3", "zero3")],
}
"""Ranks -> their runs."""
CONTINUED = {
    1: [
        Leg("2 zero2 -> 1 auto", "auto", "two, zero2", 2),
        Leg("grpo: 2 zero2 -> 1 auto", "auto", "grpo on two", 2, kind="grpo"),
        Leg("2 zero3 -> 1 zero3", "zero3", "two, zero3", 2),
    ],
    2: [
        Leg("2 off -> 2 off", "off", "two, off", 2),
        Leg("1 off -> 2 auto", "auto", "one, off", 1),
        Leg("1 off -> 2 zero3_offload", "zero3_offload", "one, off", 1),
        Leg("4 zero3 -> 2 zero3", "zero3", "four, zero3", 4, cut=2000),
        Leg("recovery: 1 off -> 2 zero2", "zero2", "recovery on one", 1, kind="recovery"),
    ],
}
LEGS = [leg for legs in CONTINUED.values() for leg in legs]


@pytest.fixture
def runs(tmp_path_factory) -> Path:
    """The folder in which all of them were run."""
    folder, tokenizer = tmp_path_factory.mktemp("resharding"), byte_tokenizer()
    backbone = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=10,  # norms of an odd number of elements by rank, which are filled up
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    Family.from_scratch(backbone, {"small": 0, "large": 1}).save_pretrained(folder / "family")
    for kind, plan in (("uninterrupted", UNINTERRUPTED), ("continued", CONTINUED)):
        for ranks, legs in plan.items():
            run_ranks("resharding_run:main", folder, legs, ranks=ranks, log=folder / f"log-{kind}-{ranks}")
    return folder


def states(runs: Path, name: str, step: int) -> dict[str, dict]:
    return torch.load(runs / name / f"{step}.pt")


def same(first, second) -> bool:
    return torch.equal(first, second) if torch.is_tensor(first) else first == second


@pytest.mark.slow
def test_a_training_goes_on_on_other_ranks_and_modes(runs):
    """One test of all legs: the tests of a module may be spread over processes, and each would make the runs anew."""
    for leg in LEGS:
        require_the_same_state(runs, leg)
        require_the_same_further_steps(runs, leg)
    require_told(runs)


def require_the_same_state(runs, leg) -> None:
    """Weights and optimiser come over bit by bit."""
    before, after = states(runs, leg.goes_on, STOP), states(runs, leg.name, STOP)
    assert before.keys() == after.keys()
    differing = [
        (name, key) for name in before for key in before[name] if not same(before[name][key], after[name][key])
    ]
    assert not differing, leg.name
    assert all(own["step"] == STOP and own["exp_avg_sq"].any() for own in after.values())


def require_the_same_further_steps(runs, leg) -> None:
    """They are the uninterrupted ones to rounding."""
    start, whole, rest = (
        states(runs, leg.goes_on, STOP),
        states(runs, leg.goes_on, STEPS),
        states(runs, leg.name, STEPS),
    )
    for name in whole:
        wanted, got = whole[name]["weight"], rest[name]["weight"]
        if leg.name == "2 off -> 2 off":
            assert torch.equal(got, wanted), name
            continue
        apart = (got - wanted).norm() / (wanted - start[name]["weight"]).norm()
        assert apart <= ROUNDING, f"{leg.name}, {name}: {apart:.1e}"
        assert all(whole[name][key] == rest[name][key] for key in ("step", "lr", "weight_decay"))


def require_told(runs) -> None:
    """The user is told what changes."""

    def told(name):
        return json.loads((runs / name / "changes.json").read_text())

    assert told("2 off -> 2 off") == []
    (line,) = told("4 zero3 -> 2 zero3")
    assert line == (
        "written by 4 ranks (zero3), continued by 2 ranks (zero3): 2 micro-batches a step on each rank in the place of "
        "1, of the same rows; results agree to rounding, not bit for bit"
    )
    assert "written by 2 ranks (zero2), continued by 1 rank (no DeepSpeed): 4 micro" in told("2 zero2 -> 1 auto")[0]


def test_a_schedule_fits_as_many_groups_as_there_are():
    schedule = {"base_lrs": [0.1, 0.1], "last_epoch": 3, "_last_lr": [0.05, 0.05], "lr_lambdas": [None, None]}
    assert fitted(schedule, 2) == schedule
    assert fitted(schedule, 1) == {"base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.05], "lr_lambdas": [None]}
    with pytest.raises(ValueError, match="base_lrs differs"):
        fitted({"base_lrs": [0.1, 0.2]}, 1)
