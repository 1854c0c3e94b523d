"""Refusals of `stage=generate` and `stage=serve`, before torch is imported."""

import json
import os
import socket

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout import vllm_version
from ruyi_rl.validation import validate

FAMILY = {
    "model_type": "ruyi_qwen3",
    "num_hidden_layers": 4,
    "early_exit_points": [0, 1, 3],
    "exit_names": ["small", "medium", "large"],
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def family(tmp_path, monkeypatch):
    """A family's folder as far as validation looks into it."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FAMILY))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


def checked(*overrides):
    validate(to_run_config(compose_config(["start_from=family", *overrides])))


def refusal(*overrides):
    with pytest.raises(Refusal) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)
    return caught.value


GENERATE = {
    ("generate.prompt=a", "generate.file=p.txt"): ("generate.prompt", "one of the two"),
    ("generate.prompt= ",): ("generate.prompt", "not blank"),
    ("generate.exits=[smal]",): ("generate.exits", "did you mean 'small'?"),
    ("generate.exits=[small,small]",): ("generate.exits", "twice"),
    ("generate.exits=[]",): ("generate.exits", "at least one"),
    ("generate.max_new_tokens=0",): ("generate.max_new_tokens", "1 or more"),
    ("generate.max_new_tokens=512",): ("generate.max_new_tokens", "512 positions"),
    ("generate.temperature=-1",): ("generate.temperature", "-1"),
    ("generate.temperature=1", "generate.top_p=0"): ("generate.top_p", "above 0"),
    ("generate.temperature=1", "generate.top_k=-1"): ("generate.top_k", "no limit"),
    ("generate.temperature=1", "generate.samples=0"): ("generate.samples", "1 or more"),
    ("generate.samples=2",): ("generate.samples", "temperature above 0"),
    ("generate.top_p=0.9",): ("generate.top_p", "temperature above 0"),
    ("generate.file=none.txt",): ("generate.file", "none.txt"),
    ("generate.file=family/config.yaml",): ("generate.file", "config.yaml"),
    ("generate.system=s", "generate.chat=false"): ("generate.system", "plain text"),
    ("generate.prompt=a", "generate.output=family"): ("generate.output", "a folder"),
    ("generate.prompt=a", "generate.output=/proc/x/y.jsonl"): ("generate.output", "/proc"),
    ("num_processes=2",): ("num_processes", "one process"),
    ("launch=true",): ("launch", "stage=serve"),
    ("start_from=nowhere",): ("start_from", "nowhere"),
    ("stages=[init,sftt]",): ("stages", "'sft'"),
    ("rollout.timeout=3",): ("rollout.timeout", "no effect"),
}
SERVE = {
    ("serve.exit=larg",): ("serve.exit", "did you mean 'large'?"),
    ("serve.port=0",): ("serve.port", "65535"),
    ("serve.port=70000",): ("serve.port", "65535"),
    ("serve.host=",): ("serve.host", "127.0.0.1"),
    ("serve.engine.port=3",): ("serve.engine.port", "serve.port"),
    ("serve.output=/proc/x",): ("serve.output", "/proc"),
    ("serve.output=family",): ("serve.output", "no export wrote"),
    ("num_processes=2",): ("num_processes", "one process"),
}


@pytest.mark.parametrize("overrides", GENERATE)
def test_what_cannot_be_generated(overrides):
    key, word = GENERATE[overrides]
    refused = refusal("stage=generate", *overrides)
    assert refused.key == key and word in str(refused)


@pytest.mark.parametrize("overrides", SERVE)
def test_what_cannot_be_served(overrides):
    key, word = SERVE[overrides]
    refused = refusal("stage=serve", *overrides)
    assert refused.key == key and word in str(refused)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('{"prompt": "a"}\nnot JSON\n', "line 2", "JSON"),
        ('{"prompt": "a"}\n\n{"promt": "b"}\n', "line 3", "None"),
        ('{"prompt": " "}\n', "line 1", "' '"),
        ('{"prompt": []}\n', "line 1", "[]"),
        ('{"prompt": [{"role": "user"}]}\n', "line 1", "no chat message"),
        ('{"prompt": [{"role": "me", "content": "a"}]}\n', "line 1", "no chat message"),
        ('{"prompt": [{"role": "assistant", "content": "a"}]}\n', "line 1", "assistant"),
        ("", "p.jsonl", "empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, text, line, word):
    (tmp_path / "p.jsonl").write_text(text)
    refused = refusal("stage=generate", "generate.file=p.jsonl")
    assert refused.key == "generate.file" and line in str(refused) and word in str(refused)


def test_files_that_cannot_be_read_as_text(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a\n\xff\n")
    assert "UTF-8" in str(refusal("stage=generate", "generate.file=p.txt"))
    (tmp_path / "p.txt").write_text("\n \n")
    assert "holds no prompt" in str(refusal("stage=generate", "generate.file=p.txt"))
    (tmp_path / "p.txt").write_text("a\n")
    assert refusal("stage=generate", "generate.file=p.txt", "generate.output=p.txt").key == "generate.output"


def test_chats_need_a_template(tmp_path, family):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "a"}]}) + "\n")
    checked("stage=generate", "generate.file=p.jsonl")
    assert refusal("stage=generate", "generate.file=p.jsonl", "generate.chat=false").key == "generate.file"
    (family / "tokenizer_config.json").write_text("{}")
    assert refusal("stage=generate", "generate.file=p.jsonl").key == "generate.file"
    assert refusal("stage=generate", "generate.prompt=a", "generate.chat=true").key == "generate.chat"
    checked("stage=generate", "generate.prompt=a")
    (family / "chat_template.jinja").write_text("{{ messages }}")
    checked("stage=generate", "generate.file=p.jsonl")


def test_what_is_right_passes_and_leaves_nothing(tmp_path):
    before = sorted(path for path, _, _ in os.walk(tmp_path))
    checked("stage=generate", "generate.prompt=a", "generate.temperature=1", "generate.samples=3", "generate.top_k=5")
    checked("stage=generate", "generate.prompt=a", "generate.output=new/folder/o.jsonl")
    checked("stage=serve", "serve.exit=small", "serve.engine.max_model_len=64", "serve.output=new/folder")
    assert sorted(path for path, _, _ in os.walk(tmp_path)) == before


def test_several_ranks_are_refused_under_a_launcher_too(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refusal("stage=serve").key == "num_processes"


def test_a_server_that_cannot_start_is_refused_before_the_export(monkeypatch):
    monkeypatch.setattr(vllm_version, "installed_version", lambda: ("vllm", "0.31.0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"serve.port={taken.getsockname()[1]}"
        refused = refusal("stage=serve", "launch=true", port)
        assert refused.key == "serve.port" and "another port" in str(refused)
        checked("stage=serve", port)
    checked("stage=serve", "launch=true", port)
    for installed in (None, ("vllm", "0.20.0")):
        monkeypatch.setattr(vllm_version, "installed_version", lambda found=installed: found)
        assert refusal("stage=serve", "launch=true", port).key == "launch"
        checked("stage=serve", port)
