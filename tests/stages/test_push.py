"""`push_to` against a hub on this machine: what arrives, what is refused before the work, what fails after it."""

import json

import pytest
from huggingface_hub import ModelCard, constants

from tests.stages.fake_hub import TOKEN, fake_hub
from tests.stages.quick_command import run_tool_command


@pytest.fixture
def hub(monkeypatch):
    """A hub, and a token that it takes."""
    with fake_hub() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def push(hub, export_config, family_folder, tmp_path, monkeypatch, capsys):
    """Runs the stage; returns what it wrote on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, status=0):
        usual = (f"start_from={family_folder}", "push_to=me/toy")
        assert run_tool_command(export_config, *usual, *overrides) == status
        return capsys.readouterr().err

    return run


def test_each_exit_goes_to_a_private_repository_of_its_own(push, hub, tmp_path):
    shown = push()
    assert hub.private == {"me/toy-small": True, "me/toy-medium": True, "me/toy-large": True}
    assert f"uploaded to {hub.endpoint}/me/toy-medium" in shown
    for exit in ("small", "medium", "large"):
        folder, sent = tmp_path / "run" / "export" / f"{exit}-merged", hub.files[f"me/toy-{exit}"]
        assert sent.keys() == {path.name for path in folder.iterdir()} - {"exported.json"}
        assert all(content == (folder / name).read_bytes() for name, content in sent.items())
        assert not any(str(tmp_path).encode() in content for content in sent.values())
        card = sent["README.md"].decode()
        assert f'from_pretrained("me/toy-{exit}")' in card and TOKEN not in card
        assert ModelCard(card).data.to_dict()["pipeline_tag"] == "text-generation"
    assert hub.messages == ["small of family", "medium of family", "large of family"]


def test_one_folder_goes_to_the_very_id(push, hub):
    push("export.exit=small")
    push("export.format=family", "push_to=toy-family")
    assert hub.files.keys() == {"me/toy", "me/toy-family"}
    assert json.loads(hub.files["me/toy-family"]["config.json"])["model_type"] == "ruyi_qwen3"


def test_what_an_earlier_export_left_there_is_not_loaded_with_the_next(push, hub, tmp_path):
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "modeling_ruyi_qwen3.py"]
    kept = {"notes.json": b"mine", "plot.py": b"mine", ".gitattributes": b"", "model.safetensors": b"old"}
    hub.private["me/toy"], hub.files["me/toy"] = True, {**dict.fromkeys(stale, b"old"), **kept}
    push("export.exit=small")
    sent = {path.name for path in (tmp_path / "run" / "export" / "small-merged").iterdir()} - {"exported.json"}
    assert hub.files["me/toy"].keys() == sent | kept.keys() and hub.files["me/toy"]["model.safetensors"] != b"old"


def test_what_fails_after_the_export_leaves_it_and_goes_on(push, hub, tmp_path):
    hub.broken = "commit"
    shown = push("export.exit=small", status=1)
    assert "was not uploaded to me/toy" in shown and "the disk of the hub is full" in shown
    assert "safe on disk" in shown and "Traceback" not in shown
    hub.broken = None
    again = push("export.exit=small")
    assert "already" in again and hub.files["me/toy"].keys() >= {"model.safetensors", "README.md"}


def test_what_the_hub_will_not_take_is_refused_before_the_work(push, hub, monkeypatch, tmp_path):
    def refused(*overrides):
        shown = push("export.exit=small", *overrides, status=2)
        assert shown.startswith("ruyi_rl: push_to: ") and shown.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return shown

    assert "'a/b/c' is no id" in refused("push_to=a/b/c")
    assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", "hf_wrong-wrong-wrong")
    assert "does not take the token" in refused()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused()
