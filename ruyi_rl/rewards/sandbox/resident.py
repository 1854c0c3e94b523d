"""The trusted side inside a sandbox: the first process of a program's namespace, and the zygote that makes them.

The resident (process 1 of the pid namespace) mounts the program's only writable folder, forks the program, takes
every right from it, and waits. It ends when the program ends, or when the parent's end of the lifeline is closed, be
it because
the parent was killed; and with process 1 the kernel kills all that is left in the namespace.

On the lifeline: the resident writes b"R" (ready; the kernel adds its process id), reads one byte (go), and writes the
program's wait status at its end. The program never holds the lifeline.
"""

import _signal as signal  # not `signal`, which imports enum: a third of the start
import posix
import resource
import select
import sys

from ruyi_rl.rewards.sandbox import kernel, program

FOLDER = "/tmp"


def attend(settings: dict, lifeline: int, channel: int, stdout: int, stderr: int) -> None:
    """Be the resident of one program; in the program's own process, serve it. Never returns.

    Args:
        settings: what `payload.settings` gave.
        lifeline, channel, stdout, stderr: open file descriptors; all others are closed for the program.
    """
    if settings["confine"]:
        kernel.mount_tmpfs(FOLDER, settings["disk"], settings["inodes"])
        posix.chdir(FOLDER)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        posix.write(lifeline, b"R")
        wanted = posix.read(lifeline, 1)
    except OSError:  # the parent died while we started
        wanted = b""
    if not wanted:
        _end(settings)
    process = posix.fork()
    if process == 0:
        _become_program(settings, channel, stdout, stderr)
    for number in (channel, stdout, stderr):
        posix.close(number)
    ended = posix.pidfd_open(process)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    if any(number == ended for number, _ in poll.poll()):
        _, status = posix.waitpid(process, 0)
        try:
            posix.write(lifeline, b"%d\n" % status)
        except OSError:  # nobody waits for it any more
            _end(settings)
    else:
        posix.kill(process, signal.SIGKILL)
    _end(settings)


def _end(settings: dict) -> None:
    """End, and with us all that the kernel ends with process 1. Unconfined it does not, and nobody else may be left."""
    if not settings["confine"]:
        import shutil

        folder = posix.getcwd()
        if "ruyi-sandbox-" in folder:
            shutil.rmtree(folder, ignore_errors=True)
        posix.killpg(0, signal.SIGKILL)
    posix._exit(0)


def _become_program(settings: dict, channel: int, stdout: int, stderr: int) -> None:
    numbers = [posix.open("/dev/null", posix.O_RDONLY), stdout, stderr, channel]
    for target, number in enumerate([_above(number, len(numbers)) for number in numbers]):
        posix.dup2(number, target)
    posix.closerange(len(numbers), min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20))
    if settings["confine"]:
        posix.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, limits in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), limits)
    if settings["confine"]:
        kernel.bound_capabilities()
        if settings["uid"]:
            posix.setgroups([])
            posix.setresgid(*[settings["uid"]] * 3)
            posix.setresuid(*[settings["uid"]] * 3)
        kernel.hide_memory()
        kernel.drop_capabilities()
        if settings["filter"]:
            kernel.filter_calls(settings["filter"])
    for name in [name for name in sys.modules if name.startswith("ruyi_rl")]:
        del sys.modules[name]
    program.serve(settings["answer"])


def _above(number: int, floor: int) -> int:
    """A copy of a file descriptor whose number is at least `floor`, so that no `dup2` onto the first ones hits it."""
    while number < floor:
        number = posix.dup(number)
    return number


def main(settings: dict, numbers: list[int]) -> None:
    """The start of a cold sandbox: the resident of one program."""
    attend(settings, *numbers)
