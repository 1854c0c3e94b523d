"""`stage=new_reward` through the command: what it writes works at once, in a folder of its own."""

import subprocess
import sys

import pytest

from ruyi_rl.__main__ import main
from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config, working_conf
from ruyi_rl.rewards.drafts import KINDS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_three_files_and_what_to_do_next(folder, capsys):
    assert main(["stage=new_reward", "name=mine"]) == 0
    paths = ["conf/reward/mine.yaml", "rewards/mine.py", "tests/test_mine_reward.py"]
    assert written(folder) == paths
    shown = capsys.readouterr().out
    assert all(path in shown for path in paths)
    for command in ("stage=check_reward reward=mine", "stage=grpo reward=mine"):
        assert f"python -m ruyi_rl {command}\n" in shown


def test_the_new_choice_is_found_from_its_folder(folder):
    assert main(["stage=new_reward", "name=mine"]) == 0
    source = ConfigSource(working=working_conf())
    config = to_run_config(compose_config(["stage=grpo", "reward=mine"], source))
    assert (config.reward.name, config.reward.judge) == ("mine", "mine")
    assert config.reward.functions["mine"].path == "rewards/mine.py"


def test_the_tests_that_are_written_pass(folder):
    for kind in KINDS:
        assert main(["stage=new_reward", f"name=my_{kind}", f"new_reward.kind={kind}"]) == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1].startswith("18 passed")


@pytest.mark.parametrize("path", ["rewards/mine.py", "conf/reward/mine.yaml", "tests/test_mine_reward.py"])
def test_no_file_is_overwritten_and_none_is_written_then(folder, capsys, path):
    (folder / path).parent.mkdir(parents=True)
    (folder / path).symlink_to("nowhere")
    assert main(["stage=new_reward", "name=mine"]) == 2
    assert f"name: {path} is there already" in capsys.readouterr().err
    assert written(folder) == [] and (folder / path).is_symlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("name: 'tiny-arithmetic'", "no name for a Python function")),
        (["name=math"], ("'math' is there already", "my_math")),
        (["name=math_answer"], ("'math_answer' is there already",)),
        (["name=mine", "new_reward.kind=plan"], ("new_reward.kind", "did you mean 'plain'?")),
        (["name=mine", "num_processes=2"], ("num_processes", "one process")),
    ],
)
def test_refusals_write_nothing(folder, capsys, arguments, words):
    assert main(["stage=new_reward", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert written(folder) == []
