"""A run whose configuration and environment are full of secrets: none of its files and none of its lines holds one."""

import json
import logging
import os
from pathlib import Path

import pytest

from ruyi_rl.__main__ import main
from ruyi_rl.cli.sweep import local

SECRETS = {
    "token": "hf_Tf9wQmXk2LpZ",
    "kwarg": "sk-proj-4rVb8nHs",
    "nested": "Nq7 dXw3,Jc5",
    "url": "pw0Zt6Gy9Ue",
    "variable": "wandb1aB2cD3e",
    "password": "Kd8sLm2vRx",
}
"""What must not be found; as different from each other and from all other text as they can be."""
LEAKY = """
import os

def leaky(completions, answer, api_key, headers, url, **kwargs):
    told = f"{url} refused {api_key} with {headers['Authorization']}, {os.environ['WANDB_API_KEY']} in the environment"
    if len(completions) % 2:
        raise ValueError(told)
    return [1.0 if text[-1]["content"].endswith("1") else 0.0 for text in completions]
"""
SHAPE = "hidden_size: 32, intermediate_size: 64, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16"
TRAINER = "{max_steps: 2, save_steps: 1, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 4}"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The words of a run with a reward function that tells all it knows in its exceptions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["variable"])
    monkeypatch.setenv("DB_PASSWORD", SECRETS["password"])
    Path("leaky.py").write_text(LEAKY)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    headers = f"{{Authorization: 'Bearer {SECRETS['nested']}'}}"
    url = f"'https://me:{SECRETS['url']}@judge.example/v1?api_key={SECRETS['kwarg']}'"
    kwargs = f"{{api_key: {SECRETS['kwarg']}, headers: {headers}, url: {url}}}"
    return [
        *(
            "name=x",
            "stages=[init,grpo]",
            "data=rows",
            "data.path=rows.jsonl",
            "data.holdout=8",
            "data.test=null",
            "rollout=transformers",
        ),
        *(f"model.scratch={{num_hidden_layers: 2, {SHAPE}}}", "model.exits={small: 0, large: 1}"),
        *(f"grpo.trainer={TRAINER}", f"grpo.trainer.hub_token={SECRETS['token']}"),
        f"reward.functions={{leaky: {{path: leaky.py, kwargs: {kwargs}, max_failure_share: 1.0, workers: 1}}}}",
        *("evaluation.problems=0", "grpo.packed=false", "grpo.trainer.report_to=tensorboard"),
    ]


def holding_secrets(folder: Path) -> list[tuple[str, str]]:
    """(file, secret) of every file in `folder` with a secret in it, as bytes, in UTF-8 or UTF-16."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    found = []
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            if secret.encode() in content or secret.encode("utf-16-le") in content:
                found.append((str(path.relative_to(folder)), name))
    return found


def run(capfd, *words: str) -> tuple[int, str]:
    """The status of the command, and all that it printed."""
    before = os.umask(0)
    try:
        status = main(list(words))
    finally:
        os.umask(before)
        logging.shutdown()
    printed = "".join(capfd.readouterr())
    assert not [name for name, secret in SECRETS.items() if secret in printed], printed
    return status, printed


@pytest.mark.slow
def test_a_run_keeps_its_secrets(command, capfd):
    status, printed = run(capfd, "stage=grpo", *command)
    assert status == 0, printed
    folder = Path("runs/x")
    assert holding_secrets(folder) == []
    # What would have held them was written.
    config = (folder / "grpo" / "config.yaml").read_text()
    assert "hub_token: '***'" in config and "https://***@judge.example" in config
    failures = (folder / "grpo" / "reward_failures.jsonl").read_text()
    assert "https://***@judge.example" in failures and "refused *** with" in failures
    assert list(folder.glob("grpo/checkpoint-1/optimizer.pt")) and list(folder.rglob("events.out.tfevents*"))
    # Nor is there a pickle in what is given to others, nor anything that everyone can write.
    assert not [path for path in folder.glob("*/*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(folder.rglob("training_args.bin"))
    assert not [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o002]
    # The secrets decide nothing: with others, it is the same run, which is done.
    other = [word.replace(SECRETS["token"], "hf_another").replace(SECRETS["url"], "elsewhere") for word in command]
    assert run(capfd, "stage=grpo", *other)[0] == 0
    assert "done already" in run(capfd, "stage=grpo", *command)[1]


@pytest.mark.slow
def test_a_failed_run_keeps_its_secrets(command, capfd):
    stopping = [word.replace("max_failure_share: 1.0", "on_error: stop") for word in command]
    status, printed = run(capfd, "stage=grpo", *stopping)
    assert status == 1 and "Go on" in printed or "go on with" in printed
    assert "hub_token=***" in printed
    assert holding_secrets(Path("runs/x")) == []


def test_refusals_printed_configs_and_sweeps_keep_them(command, capfd, monkeypatch):
    assert run(capfd, "stage=grpo", *command, "grpo.trainer.hub_tokn=" + SECRETS["token"])[0] == 2
    assert run(capfd, "stage=grpo", *command, f"grpo.trainer.hub_token={SECRETS['password']}%&}}")[0] == 2
    assert run(capfd, "stage=grpo", *command, "grpo.trainer.num_generations=1")[0] == 2
    assert "hub_token: '***'" in run(capfd, "stage=grpo", *command, "--cfg", "job", "--resolve")[1]
    refused = run(capfd, "stage=grpo", *command[:-1], "grpo.trainer.hub_token=***")
    assert refused[0] == 2 and "the secret itself" in refused[1]
    monkeypatch.setattr(local, "run_job", lambda words, log, *rest: 0 if "hub_token" in log.read_text() else 1)
    status, printed = run(capfd, "-m", "stage=grpo", "seed=1,2", "name=x${seed}", *command[1:])
    assert status == 0 and "job 2/2 done: seed=2" in printed
    assert (
        "hub_token=***" in next(Path("multirun").glob("*/sweep.json")).read_text()
        and holding_secrets(Path("multirun")) == []
    )
