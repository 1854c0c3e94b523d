import os
import subprocess
import sys

import pytest

from ruyi_rl.cli.launch import is_rank
from ruyi_rl.training.session import leave_deepspeed


@pytest.fixture
def in_deepspeed(monkeypatch):
    """As accelerate leaves the process after a training under DeepSpeed, on one rank without a launcher."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)


def test_after_deepspeed_a_trainer_without_it_is_without_it(in_deepspeed, tmp_path):
    from accelerate.utils import DistributedType
    from trl import SFTConfig

    leave_deepspeed()
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert args.distributed_state.distributed_type != DistributedType.DEEPSPEED and args.deepspeed_plugin is None


def test_after_deepspeed_a_started_process_is_no_rank(in_deepspeed, tmp_path):
    leave_deepspeed()
    assert not is_rank()
    code = "import sys; from trl import SFTConfig; print(SFTConfig(sys.argv[1], use_cpu=True, bf16=False).world_size)"
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["1"]


def test_after_deepspeed_a_rank_of_a_launcher_stays_one(in_deepspeed, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    leave_deepspeed()
    assert is_rank() and os.environ["LOCAL_RANK"] == "0"
