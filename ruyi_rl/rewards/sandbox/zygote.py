"""A warm interpreter that forks one resident a program, each in new pid, mount and IPC namespaces.

It starts with the sandbox of its slot, imports what programs often import, and never runs a line of a program. Between
two programs only its own memory stays, which no program can reach: a program is in another pid namespace, of another
user where the parent is root, without capabilities, and has no file descriptor of the zygote's.
"""

import gc
import importlib
import posix
import signal
import socket

from ruyi_rl.rewards.sandbox import kernel, resident

COMMON = """
    abc bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools hashlib heapq
    io itertools json math operator os random re statistics string textwrap threading time traceback typing
"""


def main(settings: dict, numbers: list[int]) -> None:
    """Fork a resident for every message on the control socket, which brings its four file descriptors; end with it."""
    for name in COMMON.split():
        importlib.import_module(name)
    # The kernel reaps the residents: nothing waits for them here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    itself = posix.pidfd_open(posix.getpid())
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=numbers[0]) as control:
        control.send(b"Z")
        while True:
            message, passed, _, _ = socket.recv_fds(control, 1, 4)
            if not message:
                return
            kernel.unshare(kernel.CLONE_NEWPID)
            if posix.fork() == 0:
                break
            kernel.enter(itself, kernel.CLONE_NEWPID)
            for number in passed:
                posix.close(number)
    posix.close(itself)
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
    resident.attend(settings, *passed)
