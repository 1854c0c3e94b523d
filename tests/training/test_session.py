import os
import subprocess
import sys

import pytest

from ruyi_rl.training.session import leave_deepspeed


@pytest.fixture
def in_deepspeed(monkeypatch):
    """As accelerate leaves the process after a training under DeepSpeed."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")


def test_after_deepspeed_a_trainer_without_it_is_without_it(in_deepspeed, tmp_path):
    from accelerate.utils import DistributedType
    from trl import SFTConfig

    leave_deepspeed()
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert args.distributed_state.distributed_type != DistributedType.DEEPSPEED and args.deepspeed_plugin is None


def test_after_deepspeed_a_started_process_is_a_process_of_its_own(in_deepspeed, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("RANK", raising=False)
    leave_deepspeed()
    code = "import sys; from trl import SFTConfig; print(SFTConfig(sys.argv[1], use_cpu=True, bf16=False).world_size)"
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["1"]


def test_after_deepspeed_a_rank_of_a_launcher_stays_one(in_deepspeed, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "0")
    leave_deepspeed()
    assert os.environ["LOCAL_RANK"] == "0"
