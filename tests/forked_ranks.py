"""The ranks of a test's run, forked from a process that has imported torch, TRL, DeepSpeed and vLLM.

A process of its own for each rank would import them for ten seconds. One rank's state is no other's all the same, and
nothing of the test's process gets into a rank.
"""

import atexit
import ctypes
import gc
import importlib
import multiprocessing
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import connection, forkserver
from pathlib import Path

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
HEAVY = ["torch", "deepspeed", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer"]
ON_A_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_ranks(
    function: str,
    *arguments: object,
    log: Path,
    ranks: int = 2,
    environment: Mapping[str, str] = ON_A_CPU,
    timeout: float = 300.0,
    status: int = 0,
) -> str:
    """Calls a function in every rank of a run without GPUs, with the variables that torchrun would set.

    Args:
        function: `module:name`, imported in the ranks alone.
        arguments: the function's, picklable.
        log: file for what the ranks write on standard output and standard error.
        environment: variables added to this process's.
        timeout: seconds.
        status: with which every rank is to end.

    Returns:
        What the ranks wrote.

    Raises:
        AssertionError: a rank ended with another status, or did not end; the others are killed.
    """
    start_server()
    variables = {**os.environ, **ON_A_CPU, **environment, **run_variables(ranks)}
    processes = [
        CONTEXT.Process(target=run_rank, args=(function, arguments, {**variables, **rank_variables(rank)}, log))
        for rank in range(ranks)
    ]
    log.touch()
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    while (running := [each for each in processes if each.exitcode is None]) and time.monotonic() < deadline:
        if any(each.exitcode not in (None, status) for each in processes):
            break
        connection.wait([each.sentinel for each in running], timeout=deadline - time.monotonic())
    for process in running:
        process.kill()
        process.join()
    shown = log.read_text(errors="replace")
    assert [each.exitcode for each in processes] == [status] * ranks, shown[-5000:]
    return shown


def start_server() -> None:
    """The process that ranks are forked from; it ends with this one."""
    CONTEXT.set_forkserver_preload(HEAVY)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON_A_CPU.items():
            patch.setenv(name, value)
        forkserver.ensure_running()


def run_variables(ranks: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "none",
    }


def rank_variables(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port() -> int:
    """Below those that the system gives to whoever asks for any, so that nobody gets it before rank 0 does."""
    draw = random.SystemRandom()
    while True:
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port := draw.randrange(20000, 32000)))
            except OSError:
                continue
            return port


def run_rank(function: str, arguments: tuple, variables: Mapping[str, str], log: Path) -> None:
    """In the rank's process."""
    os.environ.update(variables)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    gc.freeze()  # else every collection of a rank would look through all that was imported
    # Ranks of a real run start from states of their own.
    random.seed()
    sys.modules["numpy"].random.seed()
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)
    end_process()


def end_process() -> None:
    """What multiprocessing's children leave out at their end: Python's exit functions, and those of C++ libraries.

    vLLM's remove shared memory. Only the interpreter is not taken apart, which takes seconds after such imports.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.PyDLL(None).exit(0)
