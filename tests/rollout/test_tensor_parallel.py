import pytest
from transformers import Qwen3Config

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.tensor_parallel import RequestGroup, check_tensor_parallel
from ruyi_rl.rollout.worker import Request


def config(heads: int = 8, key_value_heads: int = 4, width: int = 96) -> Qwen3Config:
    return Qwen3Config(num_attention_heads=heads, num_key_value_heads=key_value_heads, intermediate_size=width)


def test_what_can_be_divided():
    check_tensor_parallel(1, 3, config(heads=7, key_value_heads=7, width=5))
    check_tensor_parallel(4, 8, config())
    check_tensor_parallel(8, 8, config())  # key-value heads are repeated


@pytest.mark.parametrize(
    ("size", "world_size", "model", "message"),
    [
        (2, 3, config(), "3 rank"),
        (0, 2, config(), "groups of 0"),
        (3, 3, config(), "8 heads"),
        (8, 8, config(width=100), "100 numbers of the MLP"),
        (4, 4, config(heads=12, key_value_heads=6), "6 key-value heads"),
    ],
)
def test_what_cannot_is_refused(size, world_size, model, message):
    with pytest.raises(Refusal, match=message) as refused:
        check_tensor_parallel(size, world_size, model)
    assert refused.value.key == "rollout.tensor_parallel"


def test_ranks_with_their_own_engines_gather_nothing():
    requests = [Request("small", [1], 2), Request("large", [3], 4)]
    group = RequestGroup(1)
    assert group.gathered(requests) == (requests, 0)
    group.close()
