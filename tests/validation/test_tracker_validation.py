"""Trackers that cannot log are refused before anything starts."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.validation import trackers
from ruyi_rl.validation.trackers import MODULES, check_trackers, has_wandb_account, wandb_mode


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One without accounts and settings; `installed` are its trackers."""
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("WANDB_DIR", "WANDB_CONFIG_DIR", "NETRC", "HF_TOKEN", "TRACKIO_SPACE_ID", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "has_hub_account", lambda: False)
    installed = {"tensorboard", "wandb", "trackio"}
    monkeypatch.setattr(trackers, "find_spec", lambda name: name if name in installed else None)
    return installed


def refused(report_to, **fields):
    with pytest.raises(Refusal) as refusal:
        check_trackers("grpo.trainer", {"report_to": report_to, **fields})
    assert refusal.value.key == "grpo.trainer.report_to"
    return str(refusal.value)


def test_those_that_can_log_pass(machine):
    for given in (None, "none", [], ["none"], "tensorboard", ["tensorboard", "trackio"]):
        check_trackers("grpo.trainer", {"report_to": given})
    check_trackers("grpo.trainer", {})


def test_unknown_and_missing_ones(machine):
    assert "did you mean 'wandb'" in refused("wandbb")
    assert "pip install mlflow" in refused(["tensorboard", "mlflow"])
    machine.discard("trackio")
    assert "pip install 'ruyi_rl[trackers]'" in refused(["trackio"])
    assert "WANDB_MODE=offline" in refused("all")  # all that are installed, wandb among them


def test_wandb_needs_an_account_or_to_be_offline(machine, monkeypatch, tmp_path):
    assert "wandb login" in refused("wandb")
    for variable, value in (("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled"), ("WANDB_API_KEY", "k" * 40)):
        with monkeypatch.context() as context:
            context.setenv(variable, value)
            check_trackers("sft.trainer", {"report_to": "wandb"})
    monkeypatch.setenv("RANK", "1")  # rank 0 alone logs
    check_trackers("sft.trainer", {"report_to": "wandb"})


def test_wandbs_own_files_count(machine, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine elsewhere.org\n  login user\n  password x\n")
    assert not has_wandb_account()
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'k' * 40}\n")
    assert has_wandb_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine.org")
    assert not has_wandb_account()
    assert wandb_mode() == "online"
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # as `wandb offline` leaves it
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode() == "online"


def test_a_space_of_trackio_needs_an_account(machine, monkeypatch):
    assert "HF_TOKEN" in refused("trackio", trackio_space_id="me/space")
    monkeypatch.setattr(trackers, "has_hub_account", lambda: True)
    check_trackers("grpo.trainer", {"report_to": "trackio", "trackio_space_id": "me/space"})


def test_all_that_transformers_knows_are_known():
    """Read from its source: importing it takes seconds."""
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    tree = ast.parse((folder / "integrations" / "integration_utils.py").read_text())
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "INTEGRATION_TO_CALLBACK"
    )
    known = {ast.literal_eval(key) for key in table.keys}
    assert set(MODULES) <= known and known - set(MODULES) <= {"kubeflow"}
