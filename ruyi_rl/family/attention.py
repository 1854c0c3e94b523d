"""The attention that a family's layers run, registered with transformers under `NAME`.

A call with `packed` attends inside a pack. Any other runs the implementation that the family's configuration names, as
if the layers had been given it directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from ruyi_rl.family.joined_attention import JoinedAttention, attention_plan
from ruyi_rl.family.masked_attention import masked_attention, masked_plan
from ruyi_rl.family.varlen_attention import DTYPES, runs_varlen, varlen_attention, varlen_plan

NAME = "ruyi_family"


class PackedAttention:
    """Attention of segments that stand one after the other; chooses the implementation for device and dtype.

    Args:
        lengths: tokens of each segment.
        prompts: for each segment the number of the segment that it also attends to, as a whole; -1: none.
        device: of the tokens.
    """

    def __init__(self, lengths: Sequence[int], prompts: Sequence[int], device: torch.device):
        self.lengths, self.prompts, self.device = lengths, prompts, device

    def __call__(self, query, key, value, scale: float, dropout: float = 0.0) -> torch.Tensor:
        """query (tokens, heads, dim), key and value (tokens, kv heads, dim) -> (tokens, heads, dim)."""
        if torch.is_autocast_enabled(self.device.type):
            # Norms give float32 there. Torch's attention casts by itself; a kernel that is called directly does not.
            dtype = torch.get_autocast_dtype(self.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if dropout == 0 and self.device.type == "cpu":
            return JoinedAttention.apply(query, key, value, self._joined, scale)
        if dropout == 0 and query.dtype in DTYPES and runs_varlen(self.device, query.shape[-1]):
            return varlen_attention(query, key, value, self._varlen, scale)
        return masked_attention(query, key, value, self._masked, scale, dropout)

    @cached_property
    def _joined(self):
        return attention_plan(self.lengths, self.prompts, self.device)

    @cached_property
    def _varlen(self):
        return varlen_plan(self.lengths, self.prompts, self.device)

    @cached_property
    def _masked(self):
        return masked_plan(self.lengths, self.prompts, self.device)


class Overlay:
    """An object with some attributes in the place of its own."""

    def __init__(self, target: object, **attributes: object):
        self._target = target
        self.__dict__.update(attributes)

    def __getattr__(self, name: str):
        return getattr(self._target, name)


def family_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packed: PackedAttention | None = None,
    implementation: str = "sdpa",
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As transformers' attention functions: (batch, heads, length, dim) -> (batch, length, heads, dim) and weights.

    Args:
        packed: how the tokens of the one row attend; without it `implementation` runs.
        implementation: name of transformers' attention function.
    """
    if packed is None:
        plain = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if implementation not in ("sdpa", "eager"):
            # Flash attention reads which version of it to load from the configuration of the layer's module.
            module = Overlay(module, config=Overlay(module.config, _attn_implementation=implementation))
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return packed(query, key, value, scaling, dropout)[None], None


AttentionInterface.register(NAME, family_attention)
