"""Refusals of `stage=export` and `push_to` before torch is imported and the hub is asked."""

import json
from copy import deepcopy

import pytest
from huggingface_hub import constants

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation import validate

FAMILY = {
    "model_type": "ruyi_qwen3",
    "num_hidden_layers": 4,
    "early_exit_points": [0, 1, 3],
    "exit_names": ["small", "medium", "large"],
    "expansion_blocks": [2, 0, 0],
    "factor_ranks": {"model.expansions.0.0.mlp.up_proj": 3},
}
REFUSED = {
    "an exit that is not there": ({"export.exit": "smal"}, "export.exit", "did you mean 'small'?"),
    "one of several that is not there": ({"export.exit": ["large", "smal"]}, "export.exit", "did you mean 'small'?"),
    "an exit twice": ({"export.exit": ["small", "small"]}, "export.exit", "twice"),
    "no exit": ({"export.exit": []}, "export.exit", "a list of names"),
    "an exit that is no name": ({"export.exit": {"small": 1}}, "export.exit", "a list of names"),
    "a list of lists": ({"export.exit": [["small"]]}, "export.exit", "a list of names"),
    "a format that is not there": ({"export.format": "merge"}, "export.format", "did you mean 'merged'?"),
    "no factors of this exit": (
        {"export.format": "factored", "export.exit": "medium"},
        *("export.format", "no factors of medium"),
    ),
    "blocks without a published name": ({"export.format": "ruyi"}, "export.format", "expansion blocks (2 of small)"),
    "one exit of all": ({"export.format": "family", "export.exit": "small"}, "export.exit", "holds all exits"),
    "a check that is not there": ({"export.check": "vllm"}, "export.check", "all, logits"),
    "a blank license": ({"export.license": " "}, "export.license", "apache-2.0"),
    "a folder that cannot be made": ({"export.output": "/proc/x"}, "export.output", "/proc"),
    "a family's folder": ({"export.output": "family", "export.exit": "small"}, "export.output", "no export wrote"),
    "a server": ({"launch": True}, "launch", "stage=serve"),
    "ranks": ({"num_processes": 2}, "num_processes", "one process"),
    "no id": ({"push_to": "a/b/c"}, "push_to", "'a/b/c-small' is no id"),
    "no id of the one folder": ({"push_to": "me/toy-", "export.exit": "small"}, "push_to", "'me/toy-' is no id"),
    "an upload of nothing": ({"push_to": "me/toy", "stage.name": "generate"}, "push_to", "exports nothing"),
    "an upload of a training": ({"push_to": "me/toy", "stage.name": "grpo"}, "push_to", "exports nothing"),
}


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A valid export of a family, as far as validation looks into that."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "family").mkdir()
    (folder / "family" / "config.json").write_text(json.dumps(FAMILY))
    (folder / "family" / "tokenizer_config.json").write_text("{}")
    return folder, to_run_config(compose_config(["stage=export", "start_from=family"]))


@pytest.fixture
def refusal(composed, monkeypatch):
    """Validates the export with other values."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(composed[0])

    def run(changes):
        config = deepcopy(composed[1])
        for key, value in changes.items():
            block, _, name = key.rpartition(".")
            setattr(getattr(config, block) if block else config, name, value)
        with pytest.raises(Refusal) as caught:
            validate(config)
        assert "\n" not in str(caught.value)
        return caught.value

    return run


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported(refusal, case):
    changes, key, word = REFUSED[case]
    refused = refusal(changes)
    assert refused.key == key and word in str(refused)


def test_what_can_be_exported_passes(composed, monkeypatch):
    monkeypatch.chdir(composed[0])
    for exit in (None, "small", ["large", "small"]):
        config = deepcopy(composed[1])
        config.export.exit = exit
        validate(config)
    assert [path.name for path in composed[0].iterdir()] == ["family"]


def test_a_family_without_factors_or_a_token_is_told(refusal, composed, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(refusal({"push_to": "me/toy"}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "no token" in str(refusal({"push_to": "me/toy"}))
    file = composed[0] / "family" / "config.json"
    file.write_text(json.dumps({**FAMILY, "factor_ranks": {}}))
    assert "holds no factors" in str(refusal({"export.format": "factored"}))
    file.write_text(json.dumps(FAMILY))
