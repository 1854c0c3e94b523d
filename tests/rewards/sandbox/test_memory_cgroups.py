"""Where memory cgroups are looked for, and that one really is made, used and removed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ruyi_rl.rewards.sandbox.cgroups import create_memory_cgroup, memory_cgroups
from ruyi_rl.rewards.sandbox.memory import tree_memory

VERSION_1 = """
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
36 30 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:15 - cgroup cgroup rw,memory
37 30 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct
38 30 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
""".strip()
VERSION_2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
CONTAINER = "30 24 0:26 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw"


@pytest.mark.parametrize(
    ("mountinfo", "membership", "folders"),
    [
        (
            VERSION_1,
            "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/",
            [("memory/a/b", 1), ("memory/a", 1), ("memory", 1), ("unified", 2)],
        ),
        (VERSION_2, "0::/user.slice/x.scope", [("user.slice/x.scope", 2), ("user.slice", 2), ("", 2)]),
        (CONTAINER, "0::/docker/abc/job", [("job", 2), ("", 2)]),
        (CONTAINER, "0::/elsewhere", [("", 2)]),
        ("36 30 0:32 / / rw - ext4 /dev/vda rw", "0::/", []),
    ],
)  # fmt: skip
def test_folders_from_within(mountinfo, membership, folders):
    root = Path("/sys/fs/cgroup")
    assert list(memory_cgroups(mountinfo, membership)) == [(root / folder, version) for folder, version in folders]


def test_a_group_kills_what_grows_over_its_limit_and_is_removed():
    group = create_memory_cgroup(64 << 20)
    if group is None:
        pytest.skip("this user may not make memory cgroups here")
    try:
        before = group.kills()
        with subprocess.Popen(["/bin/sh", "-c", "read x; x=$(head -c 200000000 /dev/zero | tr '\\0' x)"],
                              stdin=subprocess.PIPE) as process:  # fmt: skip
            group.adopt(process.pid)
            process.communicate(b"\n")
        assert group.kills() > before
    finally:
        group.remove()
    assert not group.folder.exists()


def test_a_group_that_nobody_removed_is_removed_by_the_next(monkeypatch):
    group = create_memory_cgroup(64 << 20)
    if group is None:
        pytest.skip("this user may not make memory cgroups here")
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    left = group.folder.with_name(f"ruyi-sandbox-{ended.pid}-1")
    left.mkdir()
    try:
        create_memory_cgroup(64 << 20).remove()
        assert left.exists(), "one that young may be of a process that we cannot see"
        monkeypatch.setattr("ruyi_rl.rewards.sandbox.cgroups._OLD_SECONDS", -1.0)
        create_memory_cgroup(64 << 20).remove()
        assert not left.exists()
        assert group.folder.exists(), "its process lives"
    finally:
        group.remove()


def test_memory_of_children_is_seen_without_a_group():
    script = (
        "import os, sys\nos.fork() or [b := b'x' * (60 << 20), print('there', flush=True), sys.stdin.read()]\nos.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 55 << 20 < tree_memory(process.pid) < 80 << 20
        process.stdin.close()
    assert tree_memory(process.pid) == 0
