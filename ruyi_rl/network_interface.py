"""The network interface through which a host reaches the run's others. Importing this module imports no torch."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping

GLOO = "GLOO_SOCKET_IFNAME"
ELSEWHERE = "198.51.100.1"
"""An address for documentation (RFC 5737): nothing is sent to it, but a default route leads there."""


def choose_interface(environment: Mapping[str, str] = os.environ) -> str | None:
    """The interface for gloo, where the user names none and one can be told for sure.

    By itself gloo takes the one of the address that the host's own name stands for. On many systems that is the
    loopback interface, through which no other host answers.
    """
    if environment.get(GLOO):
        return None
    return interface_towards(environment.get("MASTER_ADDR", ""))


def interface_towards(master: str) -> str | None:
    """The interface that leads to a host; if that is this one itself: to the world, or the only one that there is."""
    interfaces = _interfaces()
    for host in (master, ELSEWHERE):
        address = _own_address(host)
        if address in interfaces:
            return interfaces[address]
    names = set(interfaces.values())
    return names.pop() if len(names) == 1 else None


def _interfaces() -> dict[str, str]:
    """IPv4 address -> name of the interface that has it, of those that are up; without loopback."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if name in up and address.family == socket.AF_INET and not ipaddress.ip_address(address.address).is_loopback
    }


def _own_address(host: str) -> str | None:
    """This host's address in what it would send to another; None where there is no way."""
    if not host:
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, 9))  # nothing is sent: it only chooses the way
            return route.getsockname()[0]
    except OSError:
        return None
