"""The command of the launcher that started this rank, as far as it can be known. Imports no torch."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from ruyi_rl import ranks

TORCHRUN, DEEPSPEED = "torchrun", "deepspeed"
RUNNERS = {
    TORCHRUN: ("torchrun", "torch.distributed.run", "torch/distributed/run.py"),
    DEEPSPEED: ("deepspeed", "deepspeed.pt", "deepspeed.launcher.runner", "deepspeed/launcher/runner.py"),
}
"""Launcher -> what its program may be called on a command line: a script's name, a module's, a file's end."""
MODULE = "ruyi_rl"
TORCHRUNS_NAMES = {"LOCAL_WORLD_SIZE": "LOCAL_SIZE", "GROUP_RANK": "CROSS_RANK", "GROUP_WORLD_SIZE": "CROSS_SIZE"}
"""Environment variable of torchrun's -> the same of DeepSpeed's launcher."""


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """`torchrun` or `deepspeed`, by the variables that each sets; None where none of them has started this process."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return TORCHRUN
    return DEEPSPEED if "CROSS_RANK" in environment else None


def launched_command(words: Sequence[str]) -> str:
    """The launcher's command that runs these arguments again, for the end of a sentence.

    A launcher on this host is asked for its own command line. Where none ends in the arguments of this process, as when
    DeepSpeed's has reached this host from another by ssh, the command is described and not made up.

    Args:
        words: the arguments after the module's name.
    """
    name = launcher() or TORCHRUN
    hosts, here = ranks.host_count(), ranks.local_world_size()
    typed = _typed(name)
    again = ", in a job like this one (its hosts may have other names)" if "SLURM_JOB_ID" in os.environ else ""
    if typed is not None:
        on_hosts = ""
        if any(word.replace("_", "-").startswith("--node-rank") for word in typed):
            on_hosts = "on this host, and on the others theirs: "
        elif hosts > 1 and name == TORCHRUN:
            on_hosts = f"on each of the {hosts} hosts, as before: "
        return f"{on_hosts}{shlex.join([*typed, *words])}{again}"
    if hosts == 1 and name == TORCHRUN:
        return shlex.join([TORCHRUN, f"--nproc-per-node={here}", "-m", MODULE, *words]) + again
    size = f"{hosts} host{'s' if hosts > 1 else ''} with {here} rank{'s' if here > 1 else ''} each"
    return f"the same {name} command on {size}, with the arguments {shlex.join(words)}{again}"


def _typed(name: str) -> list[str] | None:
    """The launcher's words up to the module's name as a user types them; None where they are not known for sure."""
    import psutil

    own = without_local_rank(sys.argv[1:])
    try:
        above = psutil.Process().parents()[: 1 if name == TORCHRUN else 2]
        lines = [process.cmdline() for process in above]
    except psutil.Error:
        return None
    for line in lines:
        words = _program(line, name)
        if words is not None and line[len(line) - len(own) :] == own and line[-len(own) - 1] == MODULE:
            return [*words, MODULE]
    return None


def _program(line: Sequence[str], name: str) -> list[str] | None:
    """A process's command line as it is typed, up to the module's name; None where it is not this launcher's."""
    for place, word in enumerate(line[:3]):
        path = Path(word)
        if path.name in RUNNERS[name] and "." not in path.name:
            start = [path.name]
        elif word in RUNNERS[name] and line[place - 1] == "-m":
            start = ["python", "-m", word]
        elif any(word.endswith(f"/{end}") for end in RUNNERS[name] if end.endswith(".py")):
            start = ["python", "-m", RUNNERS[name][-2]]
        else:
            continue
        options = list(line[place + 1 :])
        return start + options[: options.index(MODULE)] if MODULE in options else None
    return None


def take_torchruns_names(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives what DeepSpeed's launcher tells a rank the names that torchrun uses.

    Libraries know these alone, and would take each rank for the only one of its host.
    """
    for torchruns, deepspeeds in TORCHRUNS_NAMES.items():
        if deepspeeds in environment:
            environment.setdefault(torchruns, environment[deepspeeds])


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """The arguments without the `--local_rank=N` that DeepSpeed's launcher puts before them.

    A rank reads its own from the environment, which every launcher sets.
    """
    rank = re.compile(r"--local[_-]rank=\d+")
    return [word for word in arguments if not (rank.fullmatch(word) and "LOCAL_RANK" in os.environ)]
