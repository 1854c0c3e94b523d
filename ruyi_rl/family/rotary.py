"""Rotary embeddings whose frequencies stay float32 when their model is cast.

A cast model would round them to 16 bits, and a position times a rounded frequency is another angle: at a few thousand
tokens the highest ones are off by whole turns. DeepSpeed's engines cast a model in just this way, while engines that
generate do not. transformers never does it to a model that it loads.
"""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding


class _Exact:
    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if buffer is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class ExactQwen2RotaryEmbedding(_Exact, Qwen2RotaryEmbedding):
    """Qwen2's; takes moves to a device, but no cast."""


class ExactQwen3RotaryEmbedding(_Exact, Qwen3RotaryEmbedding):
    """Qwen3's; takes moves to a device, but no cast."""


def rotary_embedding(config: PreTrainedConfig) -> ExactQwen2RotaryEmbedding | ExactQwen3RotaryEmbedding:
    """For a Qwen2 or Qwen3 configuration, a family's included."""
    kind = ExactQwen2RotaryEmbedding if config.model_type.endswith("qwen2") else ExactQwen3RotaryEmbedding
    return kind(config=config)
