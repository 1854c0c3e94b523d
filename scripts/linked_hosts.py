"""Hosts on one machine for checks of what runs on several: namespaces, joined by virtual links whose ends can be cut.

A host has a network, a name, process ids and mounts of its own. It is held by one process; when that ends, so does
everything that runs on the host, and its network with it: nothing is left behind, not even by a killed script.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

SET_PARENT_DEATH_SIGNAL = 1  # <sys/prctl.h>
NAMESPACES = ("--net", "--mount", "--uts", "--pid")
START_SECONDS = 30.0


def problem() -> str | None:
    """Why no hosts can be made here; None where they can."""
    for program in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed (packages iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces and links between them are made by root alone"
    command = ["unshare", *NAMESPACES, "--fork", "ip", "link", "add", "name", "left", "type", "veth"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"namespaces or links cannot be made: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host.

    Args:
        name: its host name.
        address: its IPv4 address in the hosts' network.
    """

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address
        holder = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sleep", "infinity"]
        self._holder = subprocess.Popen(holder, preexec_fn=_end_with_parent)  # noqa: PLW1509  no threads here
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        deadline = time.monotonic() + START_SECONDS
        while not (found := children.read_text().split()) or not self._entered(int(found[0])):
            if time.monotonic() > deadline:
                self.close()
                raise TimeoutError(f"host {name} did not start")
            time.sleep(0.02)
        self.process = int(found[0])
        self.run("hostname", name)

    def _entered(self, process: int) -> bool:
        """Whether the process that holds the host is `sleep` already, in namespaces of its own."""
        return Path(f"/proc/{process}/comm").read_text().strip() == "sleep"

    def command(self, *words: str, folder: Path | str = "/") -> list[str]:
        """The words of a command that runs on this host, in a folder."""
        # The folder is entered inside: nsenter's own --wd would enter what lies there for whoever calls it.
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), *words]
        return ["nsenter", "-t", str(self.process), "-a", *inside]

    def run(self, *words: str) -> str:
        """Runs a command on this host to its end; returns what it wrote on standard output."""
        return subprocess.run(self.command(*words), check=True, text=True, capture_output=True).stdout

    def status(self, *words: str) -> int:
        """Runs a command on this host to its end; returns its exit status."""
        return subprocess.run(self.command(*words), capture_output=True, check=False).returncode

    def start(self, words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
        """Starts a command on this host; what it writes goes to `log`."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                self.command(*words, folder=folder),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                preexec_fn=_end_with_parent,  # noqa: PLW1509  no threads here
            )

    def own(self, folder: Path, place: Path) -> None:
        """From now on this host alone sees `folder` at `place`."""
        for path in (folder, place):
            path.mkdir(parents=True, exist_ok=True)
        self.run("mount", "--bind", str(folder), str(place))

    def close(self) -> None:
        """Ends everything that runs on this host."""
        self._holder.kill()
        self._holder.wait()


class LinkedHosts:
    """Hosts whose links meet in a bridge; a context manager.

    Args:
        names: host names; the n-th gets the address 10.77.0.n.
        folder: for a file of all host names, which every host sees as its /etc/hosts.
        name_is_loopback: whether a host's own name stands for 127.0.1.1 on it, as Debian sets it up.
    """

    def __init__(self, names: Sequence[str], folder: Path, name_is_loopback: bool = False):
        self._held = ExitStack()
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}
        try:
            self._bridge = self._host("bridge", "")
            self._bridge.run("ip", "link", "add", "name", "bridge", "type", "bridge")
            self._bridge.run("ip", "link", "set", "dev", "bridge", "up")
            self.hosts = {name: self._host(name, address) for name, address in addresses.items()}
            for host in self.hosts.values():
                self._join(host)
                known = {**addresses, host.name: "127.0.1.1"} if name_is_loopback else addresses
                file = folder / f"hosts-{host.name}"
                file.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in known.items()))
                host.run("mount", "--bind", str(file), "/etc/hosts")
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def cut(self, name: str) -> None:
        """Takes a host's link down; nobody is told: what is under way is lost."""
        self._bridge.run("ip", "link", "set", "dev", name, "down")

    def mend(self, name: str) -> None:
        """Takes a host's link up again."""
        self._bridge.run("ip", "link", "set", "dev", name, "up")

    def _host(self, name: str, address: str) -> Host:
        host = Host(name, address)
        self._held.callback(host.close)
        host.run("ip", "link", "set", "lo", "up")
        return host

    def _join(self, host: Host) -> None:
        ends = ["name", host.name, "netns", str(self._bridge.process), "type", "veth"]
        ends += ["peer", "name", "eth0", "netns", str(host.process)]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        self._bridge.run("ip", "link", "set", "dev", host.name, "master", "bridge", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
