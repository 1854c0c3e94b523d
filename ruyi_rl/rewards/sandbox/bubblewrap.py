"""The command line that starts a process in namespaces of its own, with next to nothing of the system in view."""

import os
import shutil
from pathlib import Path

from ruyi_rl.rewards.sandbox.languages import Language

NAMESPACES = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
# For the trusted resident only: to mount the program's folder, and to give all rights up for the program.
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETPCAP")
ROOT_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID")
DEVICES = ("null", "urandom")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "HOME": "/tmp", "TMPDIR": "/tmp", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
"""All that a program sees of an environment."""


def find_bubblewrap() -> str | None:
    """The path of `bwrap`, or None."""
    return shutil.which("bwrap")


def bubblewrap_command(language: Language) -> list[str]:
    """The arguments up to the program to start: no network, no /proc, all read-only, and /tmp empty.

    Root keeps to its own user namespace, so that the resident can change to a user that the kernel counts by itself;
    an ordinary user needs a new one. No terminal: the new session is made inside, where the process group is known.
    """
    capabilities = CAPABILITIES
    command = [find_bubblewrap() or "bwrap", *NAMESPACES]
    if os.geteuid() == 0:
        capabilities += ROOT_CAPABILITIES
    else:
        command.append("--unshare-user")
    paths = _roots(language.visible())
    # bubblewrap makes a missing parent for its own eyes only; the program is of another user.
    for folder in sorted({folder for path in paths for folder in path.parents} - {Path("/")} | {Path("/dev")}):
        command += ["--dir", str(folder)]
    for path in paths:
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        else:
            command += ["--ro-bind", str(path), str(path)]
    for name in DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    command += ["--symlink", "/tmp", "/dev/shm", "--symlink", "/tmp/.stdin", "/dev/stdin"]
    command += ["--dir", "/tmp", "--chdir", "/tmp", "--remount-ro", "/", "--new-session", "--as-pid-1"]
    for capability in capabilities:
        command += ["--cap-add", capability]
    return command


def _roots(paths: list[Path]) -> list[Path]:
    """The paths that exist, without those inside another one, each once."""
    kept: list[Path] = []
    for path in sorted({path for path in paths if path.exists()}, key=lambda path: (len(path.parts), path)):
        if not any(root in path.parents for root in kept):
            kept.append(path)
    return kept
