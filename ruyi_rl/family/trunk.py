"""The decoder of a family: one pass over the trunk gives the hidden states of every asked exit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from ruyi_rl.family.attention import NAME, PackedAttention
from ruyi_rl.family.config import FamilyConfig, RuyiQwen2Config
from ruyi_rl.family.modeling_factored_qwen import factor_modules
from ruyi_rl.family.pack import Pack
from ruyi_rl.family.rotary import rotary_embedding


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
    """Embedding, trunk `layers`, one `eelayers` block per earlier exit, `expansions` and one of `norms` per exit.

    Whatever stands below the first trainable parameter is computed without a graph (see `Graph`).
    """

    def __init__(self, config: FamilyConfig):
        super().__init__(config)
        if isinstance(config, RuyiQwen2Config):
            layer, norm = modeling_qwen2.Qwen2DecoderLayer, modeling_qwen2.Qwen2RMSNorm
        else:
            layer, norm = modeling_qwen3.Qwen3DecoderLayer, modeling_qwen3.Qwen3RMSNorm
        points = config.early_exit_points
        of_layers = layer_config(config, max(config.depths.values()))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([layer(of_layers, i) for i in range(config.num_hidden_layers)])
        # A branch's own layer writes cache slot k, the slot after the trunk layers below it.
        self.eelayers = nn.ModuleList([layer(of_layers, k) for k in points[:-1]])
        # An exit's further blocks, which write the slots after that.
        self.expansions = nn.ModuleList(
            nn.ModuleList([layer(of_layers, config.exits[name] + 1 + i) for i in range(blocks)])
            for name, blocks in config.expansions.items()
        )
        self.norms = nn.ModuleList([norm(config.hidden_size, eps=config.rms_norm_eps) for _ in points])
        self.rotary_emb = rotary_embedding(config)
        ranks = {name.removeprefix("model."): rank for name, rank in config.factor_ranks.items()}
        factor_modules(self, {name: rank for name, rank in ranks.items() if not name.startswith("lm_head")})
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
        given = inputs_embeds is not None
        hidden = inputs_embeds if given else self.embed_tokens(input_ids)
        if pack is not None:
            return self._forward_pack(hidden, position_ids, pack, given, **kwargs)
        exits = exits or {name: None for name in self.config.exits}
        if use_cache and len(exits) > 1:
            raise ValueError("a KV cache serves one exit: slot k holds the keys of that exit's own layer")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            _hold_layers(past_key_values, max(self.config.depths[name] for name in exits))
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen).unsqueeze(0)

        spans = row_spans(exits, self.config.exits, hidden.shape[0])
        cos, sin = self.rotary_emb(hidden, position_ids)
        hidden, graph = self._begin(hidden, given)
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
            return graph.run(
                layer,
                hidden,
                attention_mask=masks[start, stop],
                position_embeddings=(_rows(cos, rows), _rows(sin, rows)),
                position_ids=_rows(position_ids, rows),
                past_key_values=past_key_values,
                use_cache=use_cache,
                implementation=self.config._attn_implementation,
                **kwargs,
            )

        states = {}
        for depth in range(max(self.config.exits[name] for name in exits) + 1):
            for name in exits:
                if self.config.exits[name] == depth:
                    start, stop = spans[name]
                    own = hidden[start:stop]
                    for layer in self.own_layers(name):
                        own = run(layer, own, start, stop)
                    states[name] = self.norms[self._index(name)](own)
            active = max((spans[name][1] for name in exits if self.config.exits[name] > depth), default=0)
            if active:
                hidden = run(self.layers[depth], hidden[:active], 0, active)
        return {name: states[name] for name in exits}

    def _forward_pack(
        self, hidden: torch.Tensor, position_ids: torch.LongTensor, pack: Pack, given: bool, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Ragged depth: each trunk layer computes the leading segments that are still active, an exit's own layers the
        shared segments and the exit's."""
        pack.check(self.config.exits)
        if hidden.shape[:2] != (1, pack.tokens):
            raise ValueError(f"a pack of {pack.tokens} tokens is one row of as many, not {tuple(hidden.shape[:2])}")
        rotary = self.rotary_emb(hidden, position_ids)
        starts = list(accumulate(pack.lengths, initial=0))
        states, plans = {}, {}
        hidden, graph = self._begin(hidden, given)

        def take(tensor: torch.Tensor, first: int, last: int) -> torch.Tensor:
            """The tokens of the shared segments and of those from `first` to before `last`."""
            if first == pack.shared:
                return tensor[:, : starts[last]]
            return torch.cat([tensor[:, : starts[pack.shared]], tensor[:, starts[first] : starts[last]]], dim=1)

        def run(layer: nn.Module, taken: torch.Tensor, first: int, last: int) -> torch.Tensor:
            if (first, last) not in plans:
                segments = [*range(pack.shared), *range(first, last)]
                lengths, prompts = [pack.lengths[i] for i in segments], [pack.prompts[i] for i in segments]
                places = tuple(take(part, first, last) for part in rotary)
                plans[first, last] = PackedAttention(lengths, prompts, taken.device), places
            attention, places = plans[first, last]
            return graph.run(
                layer,
                taken,
                attention_mask=None,
                position_embeddings=places,
                use_cache=False,
                packed=attention,
                **kwargs,
            )

        for depth in range(max(self.config.exits[name] for name in pack.exits) + 1):
            for name in pack.exits:
                if self.config.exits[name] == depth:
                    first, last = pack.segments(name)
                    own = take(hidden, first, last)
                    for layer in self.own_layers(name):
                        own = run(layer, own, first, last)
                    states[name] = self.norms[self._index(name)](own)
            deeper = [name for name in pack.exits if self.config.exits[name] > depth]
            if deeper:
                first, last = pack.shared, max(pack.shared, pack.active(deeper))
                hidden = run(self.layers[depth], take(hidden, first, last), first, last)
        return {name: states[name] for name in pack.exits}

    def own_layers(self, exit: str) -> list[nn.Module]:
        """The layers of an exit's branch above the trunk, in order: its own layer and its expansion blocks."""
        index = self._index(exit)
        own = self.layers[-1] if index == len(self.eelayers) else self.eelayers[index]
        return [own, *self.expansions[index]]

    def _index(self, exit: str) -> int:
        return list(self.config.exits).index(exit)

    def _begin(self, hidden: torch.Tensor, given: bool) -> tuple[torch.Tensor, Graph]:
        """The embeddings without a graph that leads to nothing trainable, and what runs the layers.

        Args:
            given: the caller's, not this model's.
        """
        if given or not hidden.requires_grad or trainable(self.embed_tokens):
            return hidden, Graph(False)
        # enable_input_require_grads has marked them, for the sake of the first layer that is trained.
        return hidden.detach(), Graph(True)


@dataclass(frozen=True)
class Graph:
    """Runs layers, with a graph only from the first one on that is trained or whose input has a graph."""

    mark: bool
    """Whether the input of the first trained layer is to require a gradient, which reentrant checkpointing asks for."""

    def run(self, layer: nn.Module, hidden: torch.Tensor, **kwargs) -> torch.Tensor:
        trained = trainable(layer)
        if trained and self.mark and torch.is_grad_enabled() and not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
        with torch.set_grad_enabled(torch.is_grad_enabled() and (trained or hidden.requires_grad)):
            return layer(hidden, **kwargs)


def trainable(module: nn.Module) -> bool:
    """Whether any of its parameters takes a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def _hold_layers(cache: Cache, layers: int) -> None:
    """Gives a dynamic cache, which has a slot a layer of the trunk, the slots of a deeper branch.

    Raises:
        ValueError: another kind of cache that is too shallow.
    """
    if len(cache.layers) >= layers or cache.layer_class_to_replicate is not None:
        return
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"a cache of {len(cache.layers)} layers for a branch of {layers}: make it from config.branch_config(exit)"
        )
    cache.layers.extend(DynamicLayer() for _ in range(layers - len(cache.layers)))


def layer_config(config: FamilyConfig, layers: int) -> FamilyConfig:
    """The configuration that layers hold: they call the family's attention, which runs whatever the family's names.

    Args:
        layers: of the deepest branch, which may be deeper than the trunk.
    """
    config = copy.copy(config)
    config._attn_implementation = NAME
    config.layer_types = ["full_attention"] * max(layers, config.num_hidden_layers)
    return config


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
