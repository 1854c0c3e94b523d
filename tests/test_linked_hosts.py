"""Two hosts as namespaces of this machine: they find each other, mirror a file, and a cut link ends both."""

import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from linked_hosts import LinkedHosts, problem

NAMES = ("alpha", "beta")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
SECONDS = 180.0
"""For the start, and again from the cut to the end: alone it takes 10 and 45."""


def wait(reached, logs):
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, [log.read_text()[-3000:] for log in logs.values()]
        time.sleep(0.1)


@pytest.mark.slow
def test_two_hosts_find_each_other_mirror_and_end_when_their_link_is_cut(tmp_path):
    if why := problem():
        pytest.skip(why)
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=alpha:29400", "-m", "tests.linked_run", str(tmp_path / "run")]
    logs = {name: tmp_path / f"{name}.log" for name in NAMES}
    with LinkedHosts(NAMES, tmp_path, name_is_loopback=True) as hosts:
        for name in NAMES:
            hosts[name].own(tmp_path / f"run-{name}", tmp_path / "run")
        running = {name: hosts[name].start(torchrun, REPOSITORY, logs[name], ENVIRONMENT) for name in NAMES}
        wait(lambda: all("copies of [0, 1]" in log.read_text() for log in logs.values()), logs)
        assert [(tmp_path / f"run-{name}" / "family").read_bytes() for name in NAMES] == [bytes(1000)] * 2
        time.sleep(1)
        hosts.cut("beta")
        wait(lambda: all(process.poll() is not None for process in running.values()), logs)
    # Each says of both ranks where they stand; beta's torchrun has lost its rendezvous and would wait for 15 minutes.
    for name, other in zip(NAMES, reversed(NAMES)):
        text = logs[name].read_text()
        line = next(line for line in text.splitlines() if "no progress for 6 s" in line)
        for host in (name, other):
            assert f"(host {host})" in line and "in rollout after step 0" in line, line
    assert running["alpha"].returncode == 1
    assert "still waited for a host that does not answer, and was killed" in logs["beta"].read_text()
    assert not (tmp_path / "run").joinpath("family").exists()  # the mounts were the hosts' own
