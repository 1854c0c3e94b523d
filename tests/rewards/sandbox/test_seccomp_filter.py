"""The seccomp filter of each architecture, run by an interpreter of classic BPF: what is refused, and what is not."""

import errno
import struct

import pytest

from ruyi_rl.rewards.sandbox.seccomp import ARCHITECTURES, seccomp_filter

ALLOWED = 0
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": {
        "read": 0,
        "ioctl": 16,
        "socket": 41,
        "clone": 56,
        "ptrace": 101,
        "mount": 165,
        "unshare": 272,
        "fcntl": 72,
        "setsockopt": 54,
        "flock": 73,
        "inotify_init1": 294,
    },
    "aarch64": {
        "read": 63,
        "ioctl": 29,
        "socket": 198,
        "clone": 220,
        "ptrace": 117,
        "mount": 40,
        "unshare": 97,
        "fcntl": 25,
        "setsockopt": 208,
        "flock": 32,
        "inotify_init1": 26,
    },
}
COMMON = {"io_uring_setup": 425, "clone3": 435, "openat2": 437}


def decide(program, audit, number, first=0, second=0, third=0):
    """The errno that the filter gives, or 0."""
    data = struct.pack("=IIQ6Q", number, audit, 0, first, second, third, 0, 0, 0)
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            assert value >> 16 in (0x7FFF, 0x0005)
            return value & 0xFFFF if value >> 16 == 0x0005 else ALLOWED
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if taken else if_false


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_decisions(machine):
    program, audit, numbers = seccomp_filter(machine), AUDIT[machine], {**NUMBERS[machine], **COMMON}

    def decision(name, *arguments):
        return decide(program, audit, numbers[name], *arguments)

    for name in ("ptrace", "mount", "unshare", "io_uring_setup", "flock", "inotify_init1"):
        assert decision(name) == errno.EPERM
    assert decision("clone3") == errno.ENOSYS
    for name in ("read", "openat2"):
        assert decision(name) == ALLOWED
    threads = 0x3D0F00
    assert decision("clone", threads) == decision("clone", 17) == ALLOWED
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decision("clone", 17 | namespace) == errno.EPERM
    for family in range(64):
        assert decision("socket", family) == (ALLOWED if family == 1 else errno.EAFNOSUPPORT)
    for command in range(2000):
        locks = command in (6, 7, 37, 38, 1024, 1026)
        assert decision("fcntl", 0, command) == (errno.EPERM if locks else ALLOWED)
    for option in range(64):
        assert decision("setsockopt", 0, 1, option) == (errno.EPERM if option in (7, 8, 32, 33) else ALLOWED)
    for request, right in {0x5401: ALLOWED, 0x5412: errno.EPERM, 0x541C: errno.EPERM}.items():
        assert decision("ioctl", 0, request) == right
    assert decide(program, 0x40000003, 0) == errno.EPERM, "calls of another architecture have other numbers"
    assert decide(program, audit, 0x40000000 | numbers["ptrace"]) == errno.EPERM


def test_unknown_machine_has_none():
    assert seccomp_filter("riscv64") == b""
