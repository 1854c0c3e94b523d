"""The decoder of a family: one pass over the trunk gives the hidden states of every asked exit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import accumulate
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from ruyi_rl.family.attention import NAME, PackedAttention
from ruyi_rl.family.config import FamilyConfig, RuyiQwen2Config
from ruyi_rl.family.pack import Pack


class FamilyPreTrainedModel(PreTrainedModel):
    """What transformers must know of both the decoder and the causal LM."""

    config: FamilyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Qwen2DecoderLayer", "Qwen3DecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class FamilyModel(FamilyPreTrainedModel):
    """Embedding, trunk `layers`, one `eelayers` block per earlier exit and one of `norms` per exit."""

    def __init__(self, config: FamilyConfig):
        super().__init__(config)
        if isinstance(config, RuyiQwen2Config):
            layer, norm, rotary = (
                modeling_qwen2.Qwen2DecoderLayer,
                modeling_qwen2.Qwen2RMSNorm,
                modeling_qwen2.Qwen2RotaryEmbedding,
            )
        else:
            layer, norm, rotary = (
                modeling_qwen3.Qwen3DecoderLayer,
                modeling_qwen3.Qwen3RMSNorm,
                modeling_qwen3.Qwen3RotaryEmbedding,
            )
        points = config.early_exit_points
        # The layers' own: they call the family's attention, which runs whatever the family's configuration names.
        of_layers = copy.copy(config)
        of_layers._attn_implementation = NAME
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([layer(of_layers, i) for i in range(config.num_hidden_layers)])
        # A branch's own layer writes cache slot k, the slot after the trunk layers below it.
        self.eelayers = nn.ModuleList([layer(of_layers, k) for k in points[:-1]])
        self.norms = nn.ModuleList([norm(config.hidden_size, eps=config.rms_norm_eps) for _ in points])
        self.rotary_emb = rotary(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        exits: Mapping[str, int | None] | None = None,
        pack: Pack | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """Hidden states after each asked exit's norm.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens, 0 for padding.
            position_ids: (batch, length); restarts at 0 mark packed sequences where there is no attention mask.
            past_key_values: cache of one exit; filled in place.
            exits: exit name -> number of its rows, or None where all rows are for every exit. With numbers the batch
                holds the rows of the first name, then of the second …, deepest exit first, and rows leave the batch
                when their exit has passed.
            pack: the one row of `input_ids` is a pack; `exits`, `attention_mask` and caches are not for it.

        Returns:
            Exit name -> (rows, length, hidden), in the order of `exits`. Of a pack (1, tokens, hidden): the shared
            segments and then the exit's own.
        """
        if pack is not None:
            inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            return self._forward_pack(inputs_embeds, position_ids, pack, **kwargs)
        exits = exits or {name: None for name in self.config.exits}
        if use_cache and len(exits) > 1:
            raise ValueError("a KV cache serves one exit: slot k holds the keys of that exit's own layer")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)

        spans = row_spans(exits, self.config.exits, inputs_embeds.shape[0])
        cos, sin = self.rotary_emb(inputs_embeds, position_ids)
        masks = {}

        def run(layer: nn.Module, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            rows = slice(start, stop)
            if (start, stop) not in masks:
                masks[start, stop] = create_causal_mask(
                    config=self.config,
                    inputs_embeds=hidden,
                    attention_mask=None if attention_mask is None else attention_mask[rows],
                    past_key_values=past_key_values,
                    position_ids=_rows(position_ids, rows),
                )
            return layer(
                hidden,
                attention_mask=masks[start, stop],
                position_embeddings=(_rows(cos, rows), _rows(sin, rows)),
                position_ids=_rows(position_ids, rows),
                past_key_values=past_key_values,
                use_cache=use_cache,
                implementation=self.config._attn_implementation,
                **kwargs,
            )

        names = list(self.config.exits)
        hidden, states = inputs_embeds, {}
        for depth in range(max(self.config.exits[name] for name in exits) + 1):
            for name in exits:
                if self.config.exits[name] != depth:
                    continue
                index, (start, stop) = names.index(name), spans[name]
                own_layer = self.layers[depth] if index == len(names) - 1 else self.eelayers[index]
                states[name] = self.norms[index](run(own_layer, hidden[start:stop], start, stop))
            active = max((spans[name][1] for name in exits if self.config.exits[name] > depth), default=0)
            if active:
                hidden = run(self.layers[depth], hidden[:active], 0, active)
        return {name: states[name] for name in exits}

    def _forward_pack(
        self, hidden: torch.Tensor, position_ids: torch.LongTensor, pack: Pack, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Ragged depth: each trunk layer computes the leading segments that are still active, an exit's own layer the
        shared segments and the exit's."""
        pack.check(self.config.exits)
        if hidden.shape[:2] != (1, pack.tokens):
            raise ValueError(f"a pack of {pack.tokens} tokens is one row of as many, not {tuple(hidden.shape[:2])}")
        rotary = self.rotary_emb(hidden, position_ids)
        starts = list(accumulate(pack.lengths, initial=0))
        names, states, plans = list(self.config.exits), {}, {}

        def take(tensor: torch.Tensor, first: int, last: int) -> torch.Tensor:
            """The tokens of the shared segments and of those from `first` to before `last`."""
            if first == pack.shared:
                return tensor[:, : starts[last]]
            return torch.cat([tensor[:, : starts[pack.shared]], tensor[:, starts[first] : starts[last]]], dim=1)

        def run(layer: nn.Module, first: int, last: int) -> torch.Tensor:
            if (first, last) not in plans:
                segments = [*range(pack.shared), *range(first, last)]
                lengths, prompts = [pack.lengths[i] for i in segments], [pack.prompts[i] for i in segments]
                places = tuple(take(part, first, last) for part in rotary)
                plans[first, last] = PackedAttention(lengths, prompts, hidden.device), places
            attention, places = plans[first, last]
            return layer(
                take(hidden, first, last),
                attention_mask=None,
                position_embeddings=places,
                use_cache=False,
                packed=attention,
                **kwargs,
            )

        for depth in range(max(self.config.exits[name] for name in pack.exits) + 1):
            for name in pack.exits:
                if self.config.exits[name] == depth:
                    index = names.index(name)
                    own_layer = self.layers[depth] if index == len(names) - 1 else self.eelayers[index]
                    states[name] = self.norms[index](run(own_layer, *pack.segments(name)))
            deeper = [name for name in pack.exits if self.config.exits[name] > depth]
            if deeper:
                hidden = run(self.layers[depth], pack.shared, max(pack.shared, pack.active(deeper)))
        return {name: states[name] for name in pack.exits}


def row_spans(exits: Mapping[str, int | None], depths: Mapping[str, int], batch: int) -> dict[str, tuple[int, int]]:
    """Exit name -> (first row, row after its last).

    Raises:
        ValueError: row counts that do not add up to the batch, or exits that are not ordered deepest first.
    """
    if all(count is None for count in exits.values()):
        return {name: (0, batch) for name in exits}
    order = [depths[name] for name in exits]
    if order != sorted(order, reverse=True):
        raise ValueError(f"rows of several exits stand deepest exit first, but got {list(exits)}")
    spans, start = {}, 0
    for name, count in exits.items():
        spans[name] = (start, start + count)
        start += count
    if start != batch:
        raise ValueError(f"the exits' rows {dict(exits)} add up to {start}, but the batch has {batch}")
    return spans


def _rows(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[rows]
