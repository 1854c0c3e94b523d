from types import SimpleNamespace

import pytest

from ruyi_rl.stages.recovery import recovery_sharding
from ruyi_rl.training.deepspeed import deepspeed_config, sharding_mode
from ruyi_rl.training.options import DEEPSPEED_MODES, ZERO_STAGES, DeepSpeedOptions


@pytest.mark.parametrize(("ranks", "mode"), [(1, "off"), (2, "zero2")])
def test_auto_shards_where_there_are_ranks_to_shard_over(ranks, mode):
    assert sharding_mode(DeepSpeedOptions(), ranks) == mode
    assert deepspeed_config(DeepSpeedOptions(), ranks) == deepspeed_config(DeepSpeedOptions(mode=mode), ranks)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("mode", [mode for mode in DEEPSPEED_MODES if mode != "auto"])
def test_a_mode_that_is_named_is_taken_whatever_the_ranks(mode, ranks):
    config = deepspeed_config(DeepSpeedOptions(mode=mode), ranks)
    assert (config and config["zero_optimization"]["stage"]) == ZERO_STAGES.get(mode)


def test_offloading_is_zero_3_and_where_the_states_are():
    plain, offloaded = (deepspeed_config(DeepSpeedOptions(mode=mode), 1) for mode in ("zero3", "zero3_offload"))
    for states in ("offload_param", "offload_optimizer"):
        assert offloaded["zero_optimization"].pop(states) == {"device": "cpu"}
    assert offloaded == plain


def test_changes_reach_into_blocks():
    changes = {"zero_optimization": {"offload_param": {"pin_memory": False}}, "wall_clock_breakdown": True}
    config = deepspeed_config(DeepSpeedOptions(mode="zero3_offload", config=changes), 1)
    assert config["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["wall_clock_breakdown"] is True


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="zero3_offload, not 'zero4'"):
        deepspeed_config(DeepSpeedOptions(mode="zero4"), 1)


@pytest.mark.parametrize(("mode", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 2), ("zero3_offload", 2)])
def test_recovery_takes_zero_2_for_zero_3(mode, stage):
    said = []
    context = SimpleNamespace(
        config=SimpleNamespace(deepspeed=DeepSpeedOptions(mode=mode)), console=SimpleNamespace(print=said.append)
    )
    zero = recovery_sharding(context)["zero_optimization"]
    assert zero["stage"] == stage and "offload_optimizer" not in zero
    assert bool(said) == (mode != f"zero{stage}")
