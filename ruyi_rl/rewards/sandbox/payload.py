"""What is handed to the interpreter inside a sandbox: the code of the trusted side, and what it must know."""

import marshal
import platform
import resource
from pathlib import Path

from ruyi_rl.rewards.sandbox.options import SandboxOptions
from ruyi_rl.rewards.sandbox.seccomp import seccomp_filter

_INTERPRETER_BYTES = 96 << 20
_MODULES = ("plain", "conversion", "program", "kernel", "resident")
BOOT = """
import marshal, posix, sys
modules, settings = marshal.loads(posix.pread(int(sys.argv[1]), 1 << 24, 0))
package = sys.modules["ruyi_rl.rewards.sandbox"] = type(sys)("ruyi_rl.rewards.sandbox")
for name, code in modules:
    module = sys.modules["ruyi_rl.rewards.sandbox." + name] = type(sys)("ruyi_rl.rewards.sandbox." + name)
    setattr(package, name, module)
    exec(code, module.__dict__)
getattr(package, sys.argv[2]).main(settings, [int(number) for number in sys.argv[3:]])
"""
"""Python code that loads a payload: its arguments are the payload's file descriptor, the module to run, and more."""


def payload(options: SandboxOptions, user: int) -> bytes:
    """The modules that run inside and the settings of `options` for programs of that user (0: our own), for `BOOT`.

    Nothing in it is secret: programs could read it.
    """
    warm = options.warm and options.mode != "none"
    return marshal.dumps((_codes(warm), _settings(options, user)))


def _settings(options: SandboxOptions, user: int) -> dict:
    confined = options.mode != "none"
    memory = (options.memory_mb << 20) + _INTERPRETER_BYTES
    disk = options.disk_mb << 20
    processor = int(options.seconds) + 2
    limits = {
        "RLIMIT_AS": (memory, memory),
        "RLIMIT_CPU": (processor, processor + 1),
        "RLIMIT_FSIZE": (disk, disk),
        # With the processes, the bound of what Unix sockets buffer: no memory limit but a cgroup's counts that.
        "RLIMIT_NOFILE": (64, 64),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_STACK": (64 << 20, 64 << 20),
    }
    if confined:
        # An ordinary user's own resident, and with a zygote that and the next resident, are of the same user and count.
        processes = options.processes + (0 if user else 3 if options.warm else 1)
        limits |= {"RLIMIT_NPROC": (processes, processes), "RLIMIT_MSGQUEUE": (0, 0), "RLIMIT_MEMLOCK": (0, 0)}
    for name, (soft, hard) in limits.items():
        _, most = resource.getrlimit(getattr(resource, name))
        if most != resource.RLIM_INFINITY:
            limits[name] = (min(soft, most), min(hard, most))
    return {
        "confine": confined,
        "uid": user,
        "disk": disk,
        "inodes": options.disk_mb * 64,
        "limits": limits,
        "filter": seccomp_filter(platform.machine()) if confined else b"",
        "answer": options.output_kb << 10,
    }


def _codes(warm: bool) -> list:
    """The code of the modules that run inside, in the order of their imports."""
    folder = Path(__file__).parent
    return [
        (name, compile((folder / f"{name}.py").read_text(), f"<{name}>", "exec", dont_inherit=True, optimize=2))
        for name in (*_MODULES, *(["zygote"] if warm else []))
    ]
