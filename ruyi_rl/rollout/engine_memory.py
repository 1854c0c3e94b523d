"""How much memory an engine needs: arithmetic alone, without torch or vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ruyi_rl.refusal import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GIB = 2**30
DEFAULT_LIMIT = 4 * GIB
"""Most that a cache takes on a CPU where nobody said how much."""


@dataclass(frozen=True)
class CacheShape:
    """What decides the size of one engine's key-value cache."""

    layers: int
    heads: int
    """Key-value heads that one rank holds."""
    head_size: int
    element_size: int
    """Bytes of one number."""
    block_size: int
    """Tokens of one block, the unit in which vLLM hands out memory."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, keys and values of all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.element_size * self.block_size

    def bytes_for(self, sequences: int, tokens: int) -> int:
        """Bytes that hold so many sequences of so many tokens each.

        The block over their blocks is vLLM's null block, which it never hands out.
        """
        return (sequences * -(-tokens // self.block_size) + 1) * self.block_bytes


def cache_shape(config: PreTrainedConfig, element_size: int, block_size: int, tensor_parallel: int = 1) -> CacheShape:
    """The shape of a branch's cache on one rank.

    Args:
        config: the branch's stock configuration.
        element_size: bytes of one number in the cache.
        block_size: tokens of a block.
        tensor_parallel: ranks that share the heads; a head is repeated where there are fewer heads than ranks.
    """
    heads = max(1, config.num_key_value_heads // tensor_parallel)
    return CacheShape(config.num_hidden_layers, heads, head_size(config), element_size, block_size)


def head_size(config: PreTrainedConfig) -> int:
    """Numbers of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def default_cache_bytes(shape: CacheShape, sequences: int, tokens: int, limit: int = DEFAULT_LIMIT) -> int:
    """Bytes for all sequences at full length, at most `limit`, but at least one sequence, whole blocks."""
    blocks = min(shape.bytes_for(sequences, tokens), limit) // shape.block_bytes
    return max(blocks * shape.block_bytes, shape.bytes_for(1, tokens))


def check_cache(exit: str, shape: CacheShape, tokens: int, given: int) -> None:
    """Refuses a cache in which not even one sequence has room.

    Raises:
        Refusal: with the size that is needed.
    """
    needed = shape.bytes_for(1, tokens)
    if given < needed:
        raise Refusal(
            "rollout.kv_cache_gib",
            f"{given / GIB:.4g} GiB are given, and one sequence of {tokens} tokens at the exit {exit} "
            f"takes {needed / GIB:.4g}",
            f"at least {-(-needed * 10_000 // GIB) / 10_000:g}, or a smaller rollout.max_model_len",
        )


def memory_shares(utilization: float, device_bytes: int, weights: Sequence[int]) -> list[float]:
    """Each engine's share of a GPU: its weights, and an equal part of what is left for caches and activations.

    Args:
        utilization: share of the GPU for all engines together.
        device_bytes: the GPU's memory.
        weights: (engines,) bytes of the weights that each adds to those of the engines before it.

    Returns:
        (engines,) shares, which sum to `utilization`.

    Raises:
        Refusal: the weights alone need more.
    """
    left = utilization * device_bytes - sum(weights)
    if left <= 0:
        raise Refusal(
            "rollout.gpu_memory_utilization",
            f"{utilization:g} of {device_bytes / GIB:.1f} GiB is less than the engines' weights, "
            f"{sum(weights) / GIB:.1f} GiB",
            f"more than {sum(weights) / device_bytes:.2f}, or a larger rollout.tensor_parallel",
        )
    return [(own + left / len(weights)) / device_bytes for own in weights]
