"""The command as a process: statuses, messages, what it imports, what it leaves on disk."""

import subprocess
import sys
import time

import pytest

from ruyi_rl import __main__ as command
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.refusal import Refusal

HEAVY = ("torch", "transformers", "trl", "datasets", "deepspeed", "accelerate", "vllm")
SECONDS = 10
"""A command without a run takes under one second here; the bound leaves room for a loaded machine."""


def run(folder, *arguments: str) -> subprocess.CompletedProcess:
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "ruyi_rl", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert time.monotonic() - start < SECONDS
    return result


@pytest.mark.parametrize("arguments", [[], ["model=ruyi2_14b"], ["stage=overview"]])
def test_without_a_stage_it_prints_what_there_is(tmp_path, arguments):
    result = run(tmp_path, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    for word in (
        "stage=pretrain",
        "stage=grpo",
        "stage=generate",
        "stage=serve",
        "stage=new_reward",
        "stage=check_reward",
        "ruyi2_14b",
        "gsm8k",
        "math_format",
        "zero3",
        "transformers",
    ):
        assert word in result.stdout
    assert result.stdout.count("\npython -m ruyi_rl ") == 6
    assert not list(tmp_path.iterdir())


def test_help_shows_every_choice_and_how_to_print_a_config(tmp_path):
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    for word in ("tiny_gsm8k", "qwen3_0p6b_one_gpu", "--cfg job", "--multirun", "Qwen3-14B-Base", "ZeRO-3"):
        assert word in result.stdout


def test_config_is_printed_with_the_runs_name(tmp_path):
    result = run(tmp_path, "stage=grpo", "--cfg", "job", "--resolve")
    assert result.returncode == 0
    assert "\nname: tiny-arithmetic\nrun_dir: runs/tiny-arithmetic\n" in result.stdout
    assert run(tmp_path, "seed=4", "--cfg", "job", "--package", "seed").stdout == "4\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage=grop"], ["stage", "'grop'", "'grpo'"]),
        (["stage=grpo", "grpo.trainer.learning_rat=1e-6"], ["learning_rat", "'grpo.trainer.learning_rate'"]),
        (["stage=grpo", "seed=abc"], ["seed", "'abc'", "int"]),
        (["stage=grpo", "grpo.trainer.num_generations=1"], ["num_generations", "1", "2 or more"]),
        (["stage=grpo", "data=rows", "data.path=missing.jsonl"], ["data.path", "missing.jsonl"]),
        (["stage=generate"], ["runs/tiny-arithmetic", "stage=grpo", "start_from"]),
        (["stage=compress"], ["stages=[init,sft,expand,grpo,compress]"]),
        (["stage=expand", "expand.blocks=0"], ["expand.blocks", "0", "1 or more"]),
        (["stage=grpo", "launch=true"], ["launch", "stage=serve"]),
        (["stage=grpo", "num_processes=2", "model.exits={a: 1}"], ["model.exits", "must be at 4"]),
        (["stage=grpo", "x={"], ["x={"]),
        (["--stage", "grpo"], ["--stage", "key=value"]),
        (["-m", "stage=grpo", "grpo.advantage.scale=exti,exit_"], ["'exti'", "'exit'"]),
        (["-m", "stage=grpo", "hydra/launcher=jobli", "seed=1,2"], ["hydra/launcher", "'jobli'", "'joblib'"]),
        (["stage=compare", "runs=nowhere"], ["runs", "nowhere"]),
        (["--config-dir", "nowhere"], ["nowhere"]),
        (["--config-path", "nowhere"], ["--config-dir"]),
    ],
)
def test_refusals_are_one_message_with_status_two(tmp_path, arguments, words):
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_imported_before_a_run(tmp_path):
    code = (
        "import sys\n"
        "from ruyi_rl.__main__ import main\n"
        "commands = [[], ['--help'], ['stage=grpo', '--cfg', 'job'], ['stage=grop'], ['stage=grpo', 'seed=x'],\n"
        "            ['stage=grpo', 'grpo.trainer.num_generations=1'], ['stage=grpo', 'run_dir=/proc/x'],\n"
        "            ['stage=generate'], ['stage=serve', 'launch=true'], ['stage=check_reward', 'reward=mth'],\n"
        "            ['stage=expand', 'expand.init=x'], ['stage=compress'], ['stage=eval', 'eval.exits=[x]'],\n"
        "            ['stage=new_reward', 'name=class'], ['stage=new_reward', 'name=mine']]\n"
        "print('statuses', [main(command) for command in commands])\n"
        f"print('heavy', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "statuses [0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0]\n" in result.stdout, result.stderr
    assert "heavy []\n" in result.stdout


def test_sweep_runs_each_job_in_its_own_process(tmp_path):
    result = run(tmp_path, "-m", "stage=overview", "seed=1,2")
    assert result.returncode == 0
    assert [line for line in result.stdout.splitlines() if " done: " in line] == [
        "job 1/2 done: seed=1",
        "job 2/2 done: seed=2",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]


def test_hydras_own_options_still_work(tmp_path):
    result = run(tmp_path, "--info", "defaults")
    assert result.returncode == 0 and "deepspeed/auto" in result.stdout
    assert not list(tmp_path.iterdir())


def raising(error: BaseException):
    def run_stages(config, overrides):
        raise error

    return run_stages


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Refusal("data.path", "line 7 is not JSON"), 2, "ruyi_rl: data.path: line 7 is not JSON\n"),
        (StageFailed("grpo failed"), 1, "ruyi_rl: grpo failed\n"),
        (Interrupted("go on with …", 143), 143, "ruyi_rl: go on with …\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_statuses_of_runs_that_end_early(tmp_path, monkeypatch, capsys, error, status, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_stages", raising(error))
    assert command.main(["stage=init"]) == status
    assert capsys.readouterr().err == message


def test_only_the_first_rank_of_a_machine_prints_a_refusal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_stages", raising(Refusal("data.path", "is bad")))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command.main(["stage=init"]) == 2
    assert capsys.readouterr().err == ""


def test_an_unforeseen_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_stages", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        command.main(["stage=init"])


def test_the_run_gets_the_valid_config_and_the_arguments_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(command, "run_stages", lambda config, overrides: seen.append((config, overrides)))
    assert command.main(["stage=init", "seed=3"]) == 0
    config, overrides = seen[0]
    assert (config.stage.name, config.seed, overrides) == ("init", 3, ["stage=init", "seed=3"])


def test_several_processes_are_launched_after_validation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    launched = []
    monkeypatch.setattr(command, "launch", lambda *arguments: launched.append(arguments) or 7)
    assert command.main(["stage=init", "num_processes=2"]) == 7
    assert launched == [(2, ["stage=init", "num_processes=2"])]
    assert command.main(["stage=init", "num_processes=2", "model.exits={}"]) == 2
    assert len(launched) == 1
