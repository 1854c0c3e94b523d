"""The start-up probe: whether programs can be confined here, found by confining one that tries to get out."""

import platform
import secrets
import socket
import sys
import tempfile
from dataclasses import replace

from ruyi_rl.rewards.sandbox.bubblewrap import find_bubblewrap
from ruyi_rl.rewards.sandbox.options import SandboxOptions
from ruyi_rl.rewards.sandbox.residences import SandboxFailure
from ruyi_rl.rewards.sandbox.sandbox import Sandbox

INSTALL = "install it: apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora)"
ALLOW = (
    "a default Docker container forbids namespaces: start it with --security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined --cap-add SYS_ADMIN; Ubuntu 24.04 forbids them to ordinary users: sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0"
)
_PROCESSES, _DISK_MB = 4, 1
# Each function tries to do what no program may; what it returns is what it managed to do.
_PROGRAM = """
import csv, glob, os, socket

def reach(name):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex("\\0" + name) == 0

def see(path):
    return [name for name in [path, "/home", "/proc/1", "/sys/kernel", "/etc/passwd"] if os.path.exists(name)]

def user():
    return os.getuid()

def fill(limit):
    written = 0
    try:
        while written <= limit:
            with open(f"/tmp/{written}", "wb") as file:
                written += file.write(bytes(1 << 16))
    except OSError:
        pass
    return written > limit

def litter(path):
    try:
        os.mkdir(path)
    except OSError:
        return False
    return True

def multiply(limit):
    children = 0
    try:
        while children <= limit:
            if os.fork() == 0:
                os.read(os.pipe()[0], 1)
            children += 1
    except OSError:
        pass
    return children > limit
"""


def unconfinable(options: SandboxOptions) -> str | None:
    """Why programs cannot be confined here, in one line that says what to do; None where they can be.

    Runs a small program in a sandbox as `options` describe it (smaller, so that it is quick), and looks whether it
    reaches the host's network, sees its files, is root, fills more than its folder, writes elsewhere, or starts more
    processes than it may. With `mode="none"` there is nothing to probe but the system's kind.
    """
    if sys.platform != "linux":
        return f"programs can be confined on Linux only, and this is {platform.system()}: use a Linux machine"
    if options.mode == "none":
        return None
    if find_bubblewrap() is None:
        return f"bubblewrap (bwrap) is not installed; {INSTALL}"
    small = replace(options, seconds=30.0, disk_mb=_DISK_MB, processes=_PROCESSES, memory_mb=256)
    with socket.socket(socket.AF_UNIX) as server, tempfile.NamedTemporaryFile() as secret:
        # An abstract socket belongs to the network's namespace as ports do, which no program may ask for at all.
        server.bind(f"\0ruyi-probe-{secrets.token_hex(8)}")
        server.listen()
        escapes = {
            "reaches the network": ("reach", server.getsockname()[1:].decode(), False),
            "sees the host's files": ("see", secret.name, []),
            "fills more than its folder": ("fill", _DISK_MB << 20, False),
            "writes outside its folder": ("litter", "/usr/lib/ruyi-sandbox-probe", False),
            "starts more processes than it may": ("multiply", _PROCESSES, False),
        }
        try:
            with Sandbox(small) as sandbox, sandbox.open(_PROGRAM) as program:
                user = program.call("user")
                found = {escape: program.call(name, [value]) for escape, (name, value, _) in escapes.items()}
        except SandboxFailure as failure:
            return f"{failure}; {ALLOW}"
    for outcome in (user, *found.values()):
        if outcome.kind != "value":
            return f"the probe failed in the sandbox ({outcome.kind}: {outcome.message}); {ALLOW}"
    if user.value == 0:
        return f"a confined program is root; {ALLOW}"
    breaches = [escape for escape, (_, _, right) in escapes.items() if found[escape].value != right]
    return f"a confined program {' and '.join(breaches)}; {ALLOW}" if breaches else None
