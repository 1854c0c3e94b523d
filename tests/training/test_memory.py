"""The arithmetic against the figures of the ZeRO paper, and against what two ranks' engines hold."""

import json
from pathlib import Path

import plain_torch
import pytest

from ruyi_rl.training.memory import training_state
from tests.forked_ranks import run_ranks

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.mark.parametrize("mode, gigabytes", [("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_figure_1_of_the_paper(mode, gigabytes):
    """7.5 B parameters in 16 bits on 64 ranks."""
    state = training_state(mode, ranks=64, trained=7_500_000_000, frozen=0, bits16=True)
    assert round(state.total / 1e9, 1) == gigabytes


@pytest.mark.parametrize("mode", ["zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("ranks", [1, 3, 64])
def test_what_is_frozen_takes_its_weights_alone(mode, ranks):
    whole, trained = (training_state(mode, ranks, 1000, frozen, bits16=False) for frozen in (6400, 0))
    assert whole.weights - trained.weights == 4 * (-(-6400 // ranks) if mode.startswith("zero3") else 6400)
    assert (whole.gradients, whole.masters, whole.moments) == (trained.gradients, trained.masters, trained.moments)


def test_without_deepspeed_all_is_float32_on_every_rank():
    alone, of_four = (training_state("off", ranks, 1000, 500, bits16=True) for ranks in (1, 4))
    assert (alone.weights, alone.gradients, alone.masters, alone.moments) == (6000, 4000, 0, 8000)
    assert of_four.total - alone.total == alone.gradients  # the buckets that are summed over the ranks


@pytest.mark.slow
def test_the_engines_hold_what_the_arithmetic_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import zero_memory

    plain_torch.write_families(tmp_path)
    family = plain_torch.Family.from_pretrained(tmp_path / "family")
    parameters = sum(parameter.numel() for parameter in family.parameters())
    family.bfloat16().save_pretrained(tmp_path / "family")
    mode = "zero3_offload"
    run_ranks("zero_memory:rank", mode, True, tmp_path / "family", tmp_path, log=tmp_path / "log")
    expected = training_state(mode, 2, parameters, 0, bits16=True)
    for rank in range(2):
        held = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        # Norms are not sharded by ZeRO-3, and every part is padded.
        assert {kind: held[kind] for kind in zero_memory.KINDS} == pytest.approx(vars(expected), rel=0.02)
