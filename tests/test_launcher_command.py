"""The launchers themselves, around a command that only says what it was given."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ruyi_rl import launcher_command
from ruyi_rl.__main__ import main
from ruyi_rl.cli.launch import require_launched
from ruyi_rl.config import RunConfig
from ruyi_rl.launcher_command import launched_command, take_torchruns_names, without_local_rank
from ruyi_rl.refusal import Refusal

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "CROSS_SIZE", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "RUYI_RL_LAUNCHER", "SLURM_JOB_ID")
PROGRAMS = {name: [str(Path(sys.executable).with_name(name))] for name in ("torchrun", "deepspeed")}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*LAUNCHERS, *RANK):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def told(tmp_path):
    """A module of the package's name whose ranks print the command that goes on with them."""
    package = tmp_path / "ruyi_rl"
    package.mkdir()
    (package / "__main__.py").write_text(
        "import sys\n"
        "sys.path[0] = ''\n"
        "here = sys.modules.pop('ruyi_rl')\n"
        f"sys.path.insert(0, {str(Path(launcher_command.__file__).parents[1])!r})\n"
        "from ruyi_rl.launcher_command import launched_command, without_local_rank\n"
        "command = launched_command(without_local_rank(sys.argv[1:]))\n"
        # One write: deepspeed's ranks are unbuffered, and the pieces of a print would mix with the other rank's.
        "sys.stdout.write(f'\\ngo on: {command} was given {sys.argv[1:]}\\n')\n"
    )
    (package / "__init__.py").touch()

    def run(*words):
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
        return [line.removeprefix("go on: ") for line in result.stdout.splitlines() if line.startswith("go on: ")]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            [*PROGRAMS["torchrun"], "--standalone", "--nproc-per-node=2", "-m"],
            "torchrun --standalone --nproc-per-node=2 -m",
        ),
        (
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"],
            "python -m torch.distributed.run --nproc-per-node 2 -m",
        ),
    ],
)
def test_torchruns_command_is_given_back_as_it_was_typed(told, words, shown):
    arguments = ["stage=grpo", "grpo.exits=[small]"]
    expected = f"{shown} ruyi_rl {shlex.join(arguments)} was given {arguments}"
    assert told(*words, "ruyi_rl", *arguments) == [expected] * 2


@pytest.mark.slow
def test_deepspeeds_command_is_given_back_without_the_rank_that_it_adds(told):
    words = ["--num_gpus", "2", "--module", "ruyi_rl", "stage=grpo"]
    given = told(*PROGRAMS["deepspeed"], *words)
    assert sorted(given) == [
        f"deepspeed {shlex.join(words)} was given ['--local_rank={rank}', 'stage=grpo']" for rank in (0, 1)
    ]


def test_a_launcher_that_cannot_be_seen_is_described_and_not_made_up(monkeypatch):
    for name, value in {"CROSS_RANK": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert launched_command(["stage=grpo"]) == (
        "the same deepspeed command on 2 hosts with 8 ranks each, with the arguments stage=grpo"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launched_command(["stage=grpo"]).endswith(
        "stage=grpo, in a job like this one (its hosts may have other names)"
    )


def test_a_launcher_whose_line_ends_in_other_arguments_is_not_this_ones(monkeypatch):
    line = ["/bin/python3", "/bin/torchrun", "--nnodes=2", "-m", "ruyi_rl", "stage=sft"]
    monkeypatch.setattr("psutil.Process.parents", lambda self: [self])
    monkeypatch.setattr("psutil.Process.cmdline", lambda self: line)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["x", "stage=sft"])
    assert launched_command(["stage=sft"]) == (
        "on each of the 2 hosts, as before: torchrun --nnodes=2 -m ruyi_rl stage=sft"
    )
    line.insert(3, "--node_rank=1")
    assert launched_command(["stage=sft"]) == (
        "on this host, and on the others theirs: torchrun --nnodes=2 --node_rank=1 -m ruyi_rl stage=sft"
    )
    monkeypatch.setattr(sys, "argv", ["x", "stage=grpo"])
    assert launched_command(["stage=grpo"]).startswith("the same torchrun command on 2 hosts with 1 rank each")


def test_what_deepspeeds_launcher_tells_a_rank_gets_torchruns_names():
    environment = {"CROSS_RANK": "1", "CROSS_SIZE": "2", "LOCAL_SIZE": "8", "GROUP_RANK": "stays"}
    take_torchruns_names(environment)
    given = {"LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "stays", "GROUP_WORLD_SIZE": "2"}
    assert environment == {"CROSS_RANK": "1", "CROSS_SIZE": "2", "LOCAL_SIZE": "8", **given}
    empty = {}
    take_torchruns_names(empty)
    assert empty == {}


def test_only_a_launcher_adds_a_local_rank(monkeypatch):
    arguments = ["--local_rank=1", "--local-rank=0", "stage=grpo", "x=--local_rank=2"]
    assert without_local_rank(arguments) == arguments
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert without_local_rank(arguments) == ["stage=grpo", "x=--local_rank=2"]


def test_the_command_takes_the_argument_of_deepspeeds_launcher(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["--local_rank=0", "stage=overview"]) == 0
    monkeypatch.delenv("LOCAL_RANK")
    assert main(["--local_rank=0", "stage=overview"]) == 2
    assert "--local_rank" in capsys.readouterr().err


def test_num_processes_that_a_launcher_contradicts_is_refused(monkeypatch):
    require_launched(RunConfig(num_processes=8))  # it starts them itself
    for name, value in {"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    for agreeing in (1, 8):
        require_launched(RunConfig(num_processes=agreeing))
    with pytest.raises(
        Refusal, match="num_processes: 4, but the launcher has started 8 ranks on this machine, 16 in all"
    ):
        require_launched(RunConfig(num_processes=4))
