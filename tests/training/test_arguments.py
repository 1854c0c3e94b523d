import pytest
import torch
from trl import GRPOConfig, SFTConfig

from ruyi_rl import ranks
from ruyi_rl.refusal import Refusal
from ruyi_rl.training.arguments import trainer_arguments


def arguments(tmp_path, given, kind=SFTConfig, defaults=None):
    return trainer_arguments(kind, "sft.trainer", given, tmp_path, 7, defaults)


def test_what_is_given_wins_over_defaults_and_the_output_folder_over_all(tmp_path):
    found = arguments(tmp_path, {"save_steps": 5, "seed": 9, "output_dir": "elsewhere"}, defaults={"save_steps": 3})
    assert (found.save_steps, found.seed, found.data_seed, found.output_dir) == (5, 9, 7, str(tmp_path))
    assert arguments(tmp_path, {}, defaults={"logging_steps": 1}).logging_steps == 1


def test_nothing_is_reported_unless_asked_and_a_cpu_trains_in_the_weights_dtype(tmp_path):
    found = arguments(tmp_path, {})
    assert found.report_to == [] and found.disable_tqdm and found.save_steps == 0.1
    if not torch.cuda.is_available():
        assert not found.bf16 and found.use_cpu


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SFTConfig, {"learning_rat": 1.0}, "learning_rat"),
        (SFTConfig, {"lr_scheduler_type": "cosin"}, "cosin"),
        (GRPOConfig, {"num_generations": 1, "per_device_train_batch_size": 4}, "at least 2"),
        (GRPOConfig, {"num_generations": 3, "per_device_train_batch_size": 4}, "divisible"),
    ],
)
def test_what_the_class_refuses_is_refused_under_the_config_key(tmp_path, kind, given, message):
    with pytest.raises(Refusal, match=message) as refused:
        arguments(tmp_path, given, kind)
    assert refused.value.key == "sft.trainer" and "\n" not in str(refused.value)


def test_ranks_that_the_trainer_does_not_see_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="sees 1 ranks, the launcher started 2"):
        arguments(tmp_path, {})
