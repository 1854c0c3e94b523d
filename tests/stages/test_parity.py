"""The comparison of an exported folder with its family: the arithmetic, and vLLM's part."""

import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ruyi_rl.family import Family
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.stages import parity
from ruyi_rl.stages.export import write_exports
from ruyi_rl.stages.exported import Target, exported_from
from ruyi_rl.stages.parity import Parity, compared, token_log_probs, tolerance


def test_tolerances_follow_the_dtype():
    assert tolerance(torch.float32, 30.0) == pytest.approx(3e-3)
    assert tolerance(torch.float32, 0.1) == pytest.approx(1e-4)
    assert tolerance(torch.bfloat16, 10.0) == pytest.approx(10 * 8 / 128)
    assert tolerance(torch.float16, 10.0) == pytest.approx(10 * 8 / 1024)


def test_the_largest_difference_of_any_exit_counts():
    expected = {"a": torch.zeros(1, 2, 3), "b": torch.full((1, 2, 3), -7.0)}
    got = {name: logits.clone() for name, logits in expected.items()}
    assert compared(got, expected, torch.float32) == Parity(0.0, 7.0, pytest.approx(7e-4))
    got["b"][0, 1, 2] -= 0.5
    found = compared(got, expected, torch.float32)
    assert found.difference == 0.5 and "its logits differ from the family's by up to 0.5" in found.failure
    got["a"][0, 0, 0] = torch.nan
    assert math.isnan(compared(got, expected, torch.float32).difference)
    assert compared(got, expected, torch.float32).failure


def test_what_vllm_said_decides_too():
    for vllm, word in (
        (None, None),
        ({"problem": "vLLM is not installed"}, None),
        ({"difference": 1e-5, "allowed": 1e-4}, None),
        ({"difference": 1e-3, "allowed": 1e-4}, "vLLM's log-probs"),
        ({"difference": math.nan, "allowed": 1e-4}, "vLLM's log-probs"),
        ({"failure": "vLLM could not run it"}, "could not run"),
    ):
        failure = Parity(0.0, 1.0, 1e-4, vllm).failure
        assert failure is None if word is None else word in failure


def test_log_probs_are_those_of_the_tokens_that_follow():
    logits, ids = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [9.0, 9.0, 9.0]]]), torch.tensor([[0, 2, 1]])
    expected = [2 - math.log(1 + math.e + math.e**2), -math.log(math.e**3 + 2)]
    assert token_log_probs(logits, ids)[0].tolist() == pytest.approx(expected)


def test_rows_leave_room_for_a_token():
    assert parity.check_rows(11, 8).shape == (parity.ROWS, 7)
    rows = parity.check_rows(11, 32768)
    assert rows.shape == (parity.ROWS, parity.LENGTH) and rows.max() <= 10
    assert torch.equal(rows, parity.check_rows(11, 4096))


def test_an_engine_that_does_not_start_fails_the_export_and_says_how_to_go_on(monkeypatch, tmp_path):
    def broken(*arguments):
        raise RuntimeError("Engine core initialization failed\nsee above")

    monkeypatch.setattr(parity, "unusable_vllm", lambda config: None)
    monkeypatch.setattr(parity, "vllm_log_probs", broken)
    found = parity.vllm_parity(tmp_path, torch.zeros(1, 2), torch.zeros(1, 2, 3), None, torch.float32)
    assert "Engine core initialization failed see above; export.check=logits" in found["failure"]


def test_every_exit_of_a_family_with_a_compressed_one_is_the_familys_within_1e_5():
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    from export_parity import LIMIT, measured

    marks = measured("tiny", vllm=False, console=Console(quiet=True))
    assert LIMIT == 1e-5
    assert [(mark["exit"], mark["format"]) for mark in marks] == [
        *(("small", "merged"), ("medium", "merged"), ("large", "merged")),
        ("small", "factored"),
    ]
    for mark in marks:
        assert mark["difference"] < LIMIT < 1 < mark["largest_logit"]
    assert marks[3]["parameters"] < marks[0]["parameters"]


@pytest.mark.slow
def test_vllm_is_asked_about_every_exit_and_notices_a_wrong_weight(family_folder, tmp_path, monkeypatch):
    if problem := vllm_problem() or import_problem():
        pytest.skip(problem)
    targets = [Target(exit, "merged", tmp_path / exit) for exit in ("small", "large")]
    write_exports(family_folder, targets, Console(quiet=True), vllm=True)
    for target in targets:
        found = exported_from(target.folder)["vllm"]
        assert 0 < found["difference"] < 1e-4 < found["allowed"], found
    # Only vLLM can tell: the logits were compared before the weights changed.
    small, weights = targets[0].folder, load_file(targets[0].folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    family, rows = Family.from_pretrained(str(family_folder)), parity.check_rows(259, 256)
    with torch.no_grad():
        expected = family(rows, exits="small").logits["small"]
    found = parity.vllm_parity(small, rows, expected, AutoConfig.from_pretrained(small), torch.float32)
    assert Parity(0.0, 1.0, 1e-4, found).failure
