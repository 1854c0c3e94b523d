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
