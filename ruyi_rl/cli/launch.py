"""`num_processes=n`: start n ranks of the same command on this machine with torch's launcher."""

from __future__ import annotations

import logging
import os

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.launchers import LAUNCHER
from ruyi_rl.refusal import Refusal

PATIENCE_SECONDS = 300
"""How long ranks that were told to stop may go on saving before they are killed."""


def is_rank() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def needs_launch(config: RunConfig) -> bool:
    """Whether this process must start ranks in place of running the stages itself."""
    # stage=memory only says what so many ranks would take.
    return config.num_processes > 1 and not is_rank() and config.stage.name != "memory"


def own_ranks(config: RunConfig) -> int:
    """Ranks that the command as typed starts by itself; 1 where another launcher started them."""
    return config.num_processes if LAUNCHER in os.environ or not is_rank() else 1


def require_launched(config: RunConfig) -> None:
    """Checks `num_processes` against the launcher that has started this process, if one has.

    Raises:
        Refusal: it is another number than the launcher's ranks on this machine.
    """
    here, everywhere = ranks.local_world_size(), ranks.world_size()
    if not is_rank() or config.num_processes in (1, here):
        return
    started = f"{here} ranks on this machine" + (f", {everywhere} in all" if everywhere != here else "")
    raise Refusal(
        "num_processes",
        f"{config.num_processes}, but the launcher has started {started}",
        "leave it out under torchrun and deepspeed: they say how many (--nproc-per-node, --num_gpus)",
    )


def launch(num_processes: int, arguments: list[str], module: str = "ruyi_rl") -> int:
    """Run `python -m <module>` on several ranks and wait for them; SIGINT, SIGTERM and SIGHUP are passed on to them.

    Args:
        num_processes: ranks to start on this machine.
        arguments: the command's arguments, which every rank gets as they are.
        module: the module that every rank runs.

    Returns:
        The exit status: 0, that of the rank that failed first, or 128 + the signal that stopped the run.
    """
    # torch's launcher would give every rank one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    os.environ[LAUNCHER] = str(os.getpid())
    # Imported here, since it imports torch: the configuration is valid by now.
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The ranks say themselves what went wrong.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    options = ["--standalone", "--nproc-per-node", str(num_processes), "--shutdown-timeout", str(PATIENCE_SECONDS)]
    try:
        run(parse_args([*options, "-m", module, *arguments]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0
