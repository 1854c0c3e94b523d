import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # large weights, so that a wrong layer cannot hide in the tolerance
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture
def backbone():
    """Make a small Qwen2 or Qwen3 configuration."""

    def make(kind: str = "qwen3", **changes):
        values = {**SHAPE, **({"head_dim": 16} if kind == "qwen3" else {}), **changes}
        return (Qwen3Config if kind == "qwen3" else Qwen2Config)(**values)

    return make


@pytest.fixture
def padded_batch():
    """(input_ids, attention_mask) with a left-padded, a right-padded and a full row."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 97, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, -4:] = 0
    return ids, mask
