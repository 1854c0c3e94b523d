"""GPUs and cores of jobs that run at the same time."""

import threading
import time

import pytest

from ruyi_rl.cli.sweep.devices import DevicePool, jobs_at_once, threads_per_rank, visible_gpus
from ruyi_rl.cli.sweep.jobs import Job
from ruyi_rl.cli.sweep.local import room
from ruyi_rl.cli.sweep.options import JoblibLauncher
from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal


def test_visible_gpus_are_those_that_cuda_sees(monkeypatch, tmp_path):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 1,MIG-a"}) == ["3", "1", "MIG-a"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,-1,1"}) == ["0"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g: y'\necho 'GPU 1: B (UUID: z)'\n")
    tool.chmod(0o755)
    assert visible_gpus({}) == ["0", "1"]


def test_how_many_jobs_run_at_once():
    assert jobs_at_once(4, 8, [0] * 8, 0, cores=16) == 4
    assert jobs_at_once(-1, 8, [0] * 8, 0, cores=4) == 4
    assert jobs_at_once(-2, 8, [0] * 8, 0, cores=4) == 3
    assert jobs_at_once(4, 2, [0] * 2, 0, cores=16) == 2
    assert jobs_at_once(4, 8, [2] * 8, 4, cores=16) == 2
    assert jobs_at_once(8, 8, [1, 4] * 4, 4, cores=16) == 4
    with pytest.raises(Refusal, match="job 2 needs 8 GPUs.* 4 are visible"):
        jobs_at_once(2, 2, [1, 8], 4, cores=16)
    with pytest.raises(Refusal, match="n_jobs"):
        jobs_at_once(0, 2, [0, 0], 0, cores=4)


def test_jobs_side_by_side_may_not_name_their_gpus():
    job = Job(1, [], [], config=RunConfig())
    assert room([job, job], JoblibLauncher(n_jobs=2), ["0", "1"]) == (2, [1, 1])
    assert room([job, job], JoblibLauncher(n_jobs=2, gpus_per_job=0), ["0"]) == (2, [0, 0])
    job.config.rollout.devices = {"small": ["1"]}
    assert room([job, job], JoblibLauncher(n_jobs=1), ["0", "1"]) == (1, [1, 1])
    with pytest.raises(Refusal, match=r"rollout.devices"):
        room([job, job], JoblibLauncher(n_jobs=2), ["0", "1"])


def test_threads_share_the_cores():
    assert threads_per_rank(16, at_once=4, ranks=2) == 2
    assert threads_per_rank(4, at_once=4, ranks=2) == 1


def test_no_gpu_is_lent_twice_and_jobs_wait_for_theirs():
    pool, lock = DevicePool(["a", "b", "c"]), threading.Lock()
    held, most = [], []

    def job(count):
        with pool.borrowed(count, lambda: False) as devices:
            with lock:
                held.extend(devices)
                assert len(held) == len(set(held))
                most.append(len(held))
            time.sleep(0.01)
            with lock:
                for device in devices:
                    held.remove(device)

    threads = [threading.Thread(target=job, args=(count,)) for count in (1, 2, 3, 1, 1, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 7 and max(most) == 3 and not held


def test_a_job_that_waits_ends_with_the_sweep():
    pool = DevicePool(["a"])
    with pool.borrowed(1, lambda: False), pool.borrowed(1, lambda: True) as devices:
        assert devices is None
