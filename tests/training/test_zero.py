"""ZeRO-1, 2 and 3 on two and four gloo ranks, with accumulation and clipping, against plain_torch.py on one process.

The same rows a step, however they are divided into micro-batches and over ranks, are compared with the same truth.
scripts/zero_equality.py compares every mode, number of ranks and layout.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import plain_torch
import pytest
import zero_run

from tests.forked_ranks import run_ranks

RUNS = [
    ("off", 2, {"sft": ["whole"], "grpo": ["whole", "packs, checkpointing"]}),
    ("zero1", 2, {"sft": ["whole"], "grpo": ["adamw", "packs"]}),
    ("zero1", 4, {"sft": ["adamw"]}),
    ("zero2", 2, {"sft": ["4 micro-batches"], "grpo": ["whole", "packs", "packs, bf16", "two exits"]}),
    ("zero3", 2, {"sft": ["whole"], "grpo": ["whole", "packs, checkpointing", "one exit"]}),
    ("zero3", 4, {"grpo": ["1 micro-batches"]}),
    ("zero3_offload", 2, {"sft": ["adamw", "expansion"], "grpo": ["middle exit"]}),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    plain_torch.write_families(folder)
    return folder


@pytest.fixture(scope="module")
def expected(start):
    """Plain torch's descent of a case, which neither its budget nor its accumulation nor its checkpointing changes."""

    @functools.cache
    def descent(kind, case):
        return {"sft": plain_torch.sft, "grpo": plain_torch.grpo}[kind](start, case)

    def of(kind, case):
        return descent(kind, replace(case, accumulation=1, budget=None, checkpointing=False, bf16=False))

    return of


def launch(mode: str, ranks: int, start: Path, folder: Path, cases: dict[str, list[str]]) -> list[tuple[str, str]]:
    runs = [(kind, name) for kind, names in cases.items() for name in names]
    run_ranks("zero_run:main", mode, start, folder, runs, ranks=ranks, log=folder / "log")
    return runs


def assert_equal_run(folder: Path, start: Path, kind: str, case: zero_run.Case, expected: plain_torch.Descent) -> None:
    """Every parameter's update and each step's norm, where clipping hides no scale, relative 1e-4; the losses, 1e-5."""
    norms = [row["grad_norm"] for row in json.loads((folder / "logs.json").read_text())]
    if case.bf16:
        assert norms == pytest.approx(expected.norms, rel=0.03)
        return
    assert norms == pytest.approx(expected.norms, rel=1e-4)
    errors = plain_torch.update_errors(folder, start, case, expected)
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}
    # Long steps of SGD, which the updates need, multiply the rounding of the weights.
    limit = 1e-5 if case.adamw else 1e-4
    losses = plain_torch.loss_errors(folder, kind, case, expected)
    assert {name: error for name, error in losses.items() if not error <= limit} == {}


def assert_uneven_packs(folder: Path, ranks: int) -> None:
    """The ranks ran equally many packs in each micro-batch, though one may have needed 1 and the other more."""
    needed, run = [], []
    for rank in range(ranks):
        packs = json.loads((folder / f"packs-{rank}.json").read_text())
        needed.append([need for need, _ in packs])
        run.append([count for _, count in packs])
    assert all(counts == list(map(max, zip(*needed))) for counts in run)
    assert any(min(counts) == 1 < max(counts) for counts in zip(*needed))


@pytest.mark.slow
@pytest.mark.parametrize("mode, ranks, cases", RUNS, ids=[f"{mode}-{ranks}" for mode, ranks, _ in RUNS])
def test_training_equals_plain_torch(start, tmp_path, expected, mode, ranks, cases):
    """Whole micro-batches, and packs of them whose number the ranks must agree on."""
    for kind, name in launch(mode, ranks, start, tmp_path, cases):
        case, folder = zero_run.CASES[name], tmp_path / kind / name
        assert_equal_run(folder, start, kind, case, expected(kind, case))
        if kind == "grpo" and case.budget is not None:
            assert_uneven_packs(folder, ranks)


def assert_optimised_share(folder: Path, expected: plain_torch.Descent) -> None:
    """The ranks' optimisers hold the trained parameters and, but for ZeRO's padding, nothing else."""
    held = [json.loads((folder / f"optimised-{rank}.json").read_text()) for rank in range(2)]
    trained = sum(parameter.numel() for parameter in expected.parameters.values() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in expected.parameters.values())
    assert trained < 0.75 * whole
    if held[0] == trained:  # every rank has all of them
        held = held[:1]
    assert trained <= sum(held) < trained + 0.01 * whole


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2", "zero3"])
def test_expansion_alone_equals_plain_torch(start, tmp_path, expected, mode):
    """Two expanded exits, one of them deeper than the trunk: the rest stays as it is bit by bit."""
    cases = {"sft": ["expansion"], "grpo": ["expansion"]}
    if mode == "zero3":
        cases = {"sft": ["expansion, checkpointing"], "grpo": ["expansion", "expansion, checkpointing"]}
    for kind, name in launch(mode, 2, start, tmp_path, cases):
        case, folder = zero_run.CASES[name], tmp_path / kind / name
        assert_equal_run(folder, start, kind, case, expected(kind, case))
        assert_optimised_share(folder, expected(kind, case))
        if kind == "grpo":
            assert_uneven_packs(folder, 2)
