import pytest
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.engine_memory import GIB, CacheShape, cache_shape, check_cache, default_cache_bytes, memory_shares

SHAPE = CacheShape(layers=3, heads=2, head_size=32, element_size=4, block_size=16)


def test_every_number_of_the_cache_is_counted():
    """Against a count of keys and values, layer by layer, in two blocks and the null block."""
    numbers = sum(1 for _layer in range(3) for _kind in "kv" for _head in range(2) for _number in range(32))
    assert SHAPE.block_bytes == numbers * 4 * 16
    assert SHAPE.bytes_for(1, 17) == 3 * SHAPE.block_bytes
    assert SHAPE.bytes_for(5, 16) == 6 * SHAPE.block_bytes


def test_shape_of_a_branch():
    qwen3 = Qwen3Config(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4, head_dim=128, hidden_size=64)
    assert cache_shape(qwen3, 2, 16) == CacheShape(3, 4, 128, 2, 16)
    assert cache_shape(qwen3, 2, 16, tensor_parallel=4).heads == 1
    assert cache_shape(qwen3, 2, 16, tensor_parallel=8).heads == 1  # repeated
    qwen2 = Qwen2Config(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8, hidden_size=512)
    assert cache_shape(qwen2, 2, 16) == CacheShape(2, 8, 64, 2, 16)


def test_default_holds_all_sequences_up_to_the_limit_and_always_one():
    assert default_cache_bytes(SHAPE, sequences=7, tokens=40) == SHAPE.bytes_for(7, 40)
    limited = default_cache_bytes(SHAPE, sequences=1000, tokens=40, limit=100 * SHAPE.block_bytes + 5)
    assert limited == 100 * SHAPE.block_bytes
    assert default_cache_bytes(SHAPE, sequences=1000, tokens=400, limit=1) == SHAPE.bytes_for(1, 400)


def test_refused_only_below_one_sequence():
    needed = SHAPE.bytes_for(1, 100)
    check_cache("small", SHAPE, 100, needed)
    with pytest.raises(Refusal) as refused:
        check_cache("small", SHAPE, 100, needed - 1)
    assert refused.value.key == "rollout.kv_cache_gib" and "exit small" in refused.value.problem
    enough = float(refused.value.allowed.split()[2].rstrip(","))
    assert needed <= enough * GIB < needed + 2e-4 * GIB


def test_shares_cover_the_weights_and_sum_to_what_is_given():
    weights = [28 * GIB, 3 * GIB, GIB]
    shares = memory_shares(0.5, 80 * GIB, weights)
    assert sum(shares) == pytest.approx(0.5)
    rest = [share * 80 - own / GIB for share, own in zip(shares, weights)]
    assert rest == pytest.approx([8 / 3] * 3)
    with pytest.raises(Refusal, match=r"rollout.gpu_memory_utilization: .*32.0 GiB.*more than 0.40"):
        memory_shares(0.4, 80 * GIB, weights)
