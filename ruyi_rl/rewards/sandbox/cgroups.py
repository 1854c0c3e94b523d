"""Memory cgroups, version 1 and 2: the only limit that holds for all processes of a program together."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruyi_rl.rewards.sandbox.residences import SandboxFailure

LEFTOVERS = "RUYI_RL_LEFTOVERS"
"""Environment variable: a file that takes the groups' folders, for who kills this process with its janitor."""
_NAME, _OLD_SECONDS = "ruyi-sandbox", 60.0
# Removes the group as soon as the parent's end of the pipe is closed, be it because the parent was killed.
_JANITOR = """
read -r line
tries=0
while [ -d "$1" ] && [ $tries -lt 50 ]; do
    rmdir "$1" 2>/dev/null || sleep 0.1
    tries=$((tries + 1))
done
"""


@dataclass
class MemoryCgroup:
    """A group with a limit; `remove` it.

    Attributes:
        folder: in the cgroup file system.
        version: 1 or 2.
    """

    folder: Path
    version: int
    _janitor: subprocess.Popen | None = field(default=None, repr=False)

    def add(self, process: int) -> None:
        """Move a process into the group; what it starts later is born there."""
        (self.folder / "cgroup.procs").write_text(str(process))

    def add_this_thread(self) -> None:
        """Move the calling thread, where it can go without its process; what it starts later is born there.

        Its own memory goes on to count where its process is.
        """
        if self.version == 1:
            (self.folder / "tasks").write_text(str(threading.get_native_id()))

    def adopt(self, process: int) -> None:
        """Make sure that a process is in the group, and ask the kernel to kill it, or its children, before any other.

        Raises:
            SandboxFailure: it has ended.
        """
        try:
            if str(process) not in (self.folder / "cgroup.procs").read_text().split():
                self.add(process)
        except OSError as error:
            raise SandboxFailure(f"a process could not be put into its cgroup: {error}") from None
        # An ordinary user may not always say so; what is killed then is what is largest, as a rule the program.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/oom_score_adj").write_text("1000")

    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.folder / name).read_text().splitlines():
            word, _, number = line.partition(" ")
            if word == "oom_kill":
                return int(number)
        return 0

    def remove(self) -> None:
        """Remove the group; its processes must have ended."""
        if self._janitor is not None:
            self._janitor.stdin.close()
            self._janitor.wait()
            self._janitor = None


def create_memory_cgroup(limit: int) -> MemoryCgroup | None:
    """A group of at most `limit` bytes of memory and no swap, or None where this process may not make one.

    Tried are a group inside our own and inside each of those that contain it, from within; a group is taken only after
    a process of ours has really been moved there.
    """
    own = Path("/proc/self")
    for parent, version in memory_cgroups((own / "mountinfo").read_text(), (own / "cgroup").read_text()):
        folder = parent / f"{_NAME}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        _sweep(parent)
        group = MemoryCgroup(folder, version)
        group._janitor = subprocess.Popen(
            ["/bin/sh", "-c", _JANITOR, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        try:
            _limit(group, limit)
            _try(group)
        except OSError:
            group.remove()
            continue
        if note := os.environ.get(LEFTOVERS):
            with open(note, "a") as file:
                file.write(f"{folder}\n")
        return group
    return None


def memory_cgroups(mountinfo: str, membership: str) -> Iterator[tuple[Path, int]]:
    """The folders of the memory cgroups that a process is in, from within, each with its version.

    Args:
        mountinfo, membership: the text of its /proc/…/mountinfo and /proc/…/cgroup.
    """
    groups = [line.split(":", 2) for line in membership.splitlines()]
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and "memory" in options.split(" ")[-1].split(","):
            version, own = 1, [path for _, names, path in groups if "memory" in names.split(",")]
        elif kind == "cgroup2":
            version, own = 2, [path for number, _, path in groups if number == "0"]
        else:
            continue
        root, mount = before.split(" ")[3:5]
        for path in own:
            inside = os.path.relpath(path, root)
            # Of a container that sees the host's cgroups, its own is not below the mount: only the mount is there.
            at = Path(mount) if inside.startswith("..") else Path(mount) / inside
            yield at, version
            while at != Path(mount):
                at = at.parent
                yield at, version


def _sweep(parent: Path) -> None:
    """Remove old groups whose janitor was killed together with their parent; one with processes cannot be removed."""
    for folder in parent.glob(f"{_NAME}-*"):
        with contextlib.suppress(OSError, ValueError):
            process = int(folder.name.split("-")[2])
            if time.time() - folder.stat().st_mtime > _OLD_SECONDS and not Path(f"/proc/{process}").exists():
                folder.rmdir()


def _limit(group: MemoryCgroup, limit: int) -> None:
    if group.version == 1:
        (group.folder / "memory.limit_in_bytes").write_text(str(limit))
        swap = group.folder / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(str(limit))
    else:
        (group.folder / "memory.max").write_text(str(limit))
        swap = group.folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")


def _try(group: MemoryCgroup) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            group.add(process.pid)
        finally:
            process.kill()
