"""The families that training is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen3Config

    from ruyi_rl.family import Family

EXITS = MappingProxyType(
    {
        "ruyi2": {"1.7B": 2, "8B": 21, "14B": 39},
        "prototype": {"small": 2, "medium": 10, "large": 19},
        "tiny": {"small": 0, "medium": 2, "large": 4},
    }
)
"""Shape -> exit -> number of trunk layers below it."""
HIDDEN = MappingProxyType({"ruyi2": 256, "prototype": 512, "tiny": 64})
"""Shape -> default width."""


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a family with separate heads depends on."""

    exits: dict[str, int]
    """Exit -> number of trunk layers below its own layer."""
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def deepest_first(self) -> list[str]:
        return sorted(self.exits, key=lambda name: -self.exits[name])


def shape_of(name: str, hidden: int | None = None) -> Shape:
    """`ruyi2`: Ruyi2-14B's layers, and its other sizes in proportion to the width: about five query heads for each key
    head, an MLP of 3.4 and a vocabulary of 29.7 times the width. `prototype`: 20 layers and a small vocabulary."""
    hidden = hidden or HIDDEN[name]
    if name == "ruyi2":
        head_dim, heads = 32, max(1, hidden // 32)
        kv_heads = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(heads / n - 5))
        return Shape(EXITS[name], hidden, round(3.4 * hidden), heads, kv_heads, head_dim, round(29.7 * hidden))
    head_dim = 64 if hidden >= 256 else 32
    heads = max(2, hidden // head_dim)
    return Shape(EXITS[name], hidden, 3 * hidden, heads, heads // 2, head_dim, 4 * hidden)


def backbone_of(shape: Shape) -> Qwen3Config:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=max(shape.exits.values()) + 1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )


def family_of(shape: Shape, device: str = "cpu", dtype: str = "float32") -> Family:
    """With random weights."""
    import torch

    from ruyi_rl.family import Family

    return Family.from_scratch(backbone_of(shape), shape.exits, seed=1).to(device, getattr(torch, dtype))
