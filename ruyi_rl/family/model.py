"""The family as a transformers causal LM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from ruyi_rl.family.compression import compress
from ruyi_rl.family.config import EEQwen3Config, FamilyConfig, RuyiQwen2Config, RuyiQwen3Config
from ruyi_rl.family.expansion import expand
from ruyi_rl.family.factorisation import MatrixReport
from ruyi_rl.family.modeling_factored_qwen import FactoredLinear, empty_model, factor_modules
from ruyi_rl.family.output import FamilyOutput
from ruyi_rl.family.pack import Pack
from ruyi_rl.family.trunk import FamilyModel, FamilyPreTrainedModel
from ruyi_rl.family.weights import (
    base_sources,
    branch_sources,
    dense,
    expansion_parameters,
    parameters_of,
    tensors_of,
)
from ruyi_rl.training.log_probs import token_statistics

OUTPUTS = ("logits", "hidden_states", "log_probs")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")


class Family(FamilyPreTrainedModel, GenerationMixin):
    """One network, several exits; each exit's branch is a stock Qwen2 or Qwen3.

    `family(input_ids, exits=…)` returns a `FamilyOutput` with one entry per exit. Inside `with family.at_exit(name):`
    a call without `exits` behaves like a stock causal LM at that exit, for libraries that call the model themselves;
    `generate` outside of it runs the default exit. The scope belongs to this object and to the thread that entered it
    first: do not run one family at two exits from two threads.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __new__(cls, config=None, *args, **kwargs):
        return super().__new__(_CLASSES[type(config)] if cls is Family and config is not None else cls)

    def __init__(self, config: FamilyConfig):
        super().__init__(config)
        self.model = FamilyModel(config)
        heads = [
            nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            for _ in range(1 if config.shared_heads else len(config.exits))
        ]
        self.lm_head = heads[0] if config.shared_heads else nn.ModuleList(heads)
        factor_modules(self, {name: rank for name, rank in config.factor_ranks.items() if name.startswith("lm_head.")})
        self._exit_in_scope: str | None = None
        self.post_init()

    @property
    def exits(self) -> dict[str, int]:
        """Exit name -> position k, shallowest first."""
        return self.config.exits

    def head(self, exit: str) -> nn.Linear | FactoredLinear:
        """The LM head that an exit reads its logits from."""
        return self.lm_head if self.config.shared_heads else self.lm_head[list(self.exits).index(exit)]

    def get_output_embeddings(self) -> nn.Linear | FactoredLinear:
        """The head of the exit in scope, or of the default exit."""
        return self.head(self._exit_in_scope or self.config.default_exit)

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        if not self.config.shared_heads:
            raise ValueError("the exits have a head each: resize the base before Family.from_base")
        self.lm_head = new_embeddings

    @contextmanager
    def at_exit(self, exit: str) -> Iterator[Family]:
        """Make calls without `exits` behave like the stock model of this exit's branch."""
        (name,) = self._resolve(exit)
        before, self._exit_in_scope = self._exit_in_scope, name
        try:
            yield self
        finally:
            self._exit_in_scope = before

    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """transformers' generate at the exit in scope, or at the default exit."""
        if self._exit_in_scope is not None:
            return super().generate(*args, **kwargs)
        with self.at_exit(self.config.default_exit):
            return super().generate(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        exits: str | Sequence[str] | Mapping[str, int] | None = None,
        output: str = "logits",
        temperature: float = 1.0,
        pack: Pack | None = None,
        **kwargs,
    ) -> FamilyOutput | CausalLMOutputWithPast:
        """Run the trunk once and read off any subset of exits.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens, 0 for padding.
            labels: (batch, length), -100 where a token does not count; position t is predicted from t - 1.
            logits_to_keep: as in transformers: only the last so many positions' logits (0: all).
            exits: a name, several names, or None for all. A mapping name -> number of rows says that the batch holds
                the rows of these exits one after the other, deepest exit first, each row for its exit alone.
            output: `logits`, `hidden_states`, or `log_probs` (of `labels`, with entropies, without holding logits).
            temperature: divides the logits of `log_probs`.
            pack: `input_ids` (1, tokens) is a pack with its `position_ids`; `output` is `hidden_states` or `log_probs`,
                of what the pack says, for the pack's exits.

        Returns:
            A `FamilyOutput`; in the scope of `at_exit` and without `exits`, transformers' `CausalLMOutputWithPast`.

        Raises:
            ValueError: an exit that the family does not have, `log_probs` without labels, a cache for several exits.
        """
        if pack is not None:
            others = (attention_mask, past_key_values, inputs_embeds, labels, exits)
            if position_ids is None or any(other is not None for other in others):
                raise ValueError("a pack comes with input_ids and position_ids, and says itself what it is and scores")
            return self._forward_pack(input_ids, position_ids, pack, output, temperature, **kwargs)
        stock_like = exits is None and self._exit_in_scope is not None
        rows = self._resolve(self._exit_in_scope if stock_like else exits)
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, not {output!r}")
        if use_cache is None:
            use_cache = stock_like and self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        states = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            exits=rows,
            **kwargs,
        )
        cache = past_key_values if use_cache else None
        if output == "hidden_states":
            return FamilyOutput(hidden_states=states, past_key_values=cache)
        if output == "log_probs":
            if labels is None:
                raise ValueError("output='log_probs' needs labels, the tokens to score")
            return self._score(states, rows, labels, temperature)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = {name: self.head(name)(hidden[:, keep, :]) for name, hidden in states.items()}
        loss = None
        if labels is not None:
            loss = sum(
                self.loss_function(logits=logits[name], labels=part, vocab_size=self.config.vocab_size, **kwargs)
                for name, part in _split_rows(labels, rows).items()
            )
        if stock_like:
            return CausalLMOutputWithPast(loss=loss, logits=logits[next(iter(rows))], past_key_values=cache)
        return FamilyOutput(loss=loss, logits=logits, past_key_values=cache)

    def _forward_pack(self, input_ids, position_ids, pack, output, temperature, **kwargs) -> FamilyOutput:
        if output not in ("hidden_states", "log_probs"):
            raise ValueError(f"a pack gives hidden_states or log_probs, not {output!r}")
        self._resolve(pack.exits)
        states = self.model(input_ids=input_ids, position_ids=position_ids, pack=pack, **kwargs)
        if output == "hidden_states":
            return FamilyOutput(hidden_states=states)
        columns = {"log_probs": {}, "entropy": {}, "is_top1": {}}
        for name, scored in pack.scored.items():
            # Where nothing is scored this is empty, and still a node of the graph: every exit's parameters get a
            # gradient in every micro-batch.
            hidden = states[name][0].index_select(0, scored.sources)
            statistics = token_statistics(hidden, self.head(name), scored.targets, temperature)
            for column, values in columns.items():
                values[name] = getattr(statistics, column)
        return FamilyOutput(**columns)

    def _score(self, states, rows, labels, temperature) -> FamilyOutput:
        columns = {"log_probs": {}, "entropy": {}, "is_top1": {}}
        for name, part in _split_rows(labels, rows).items():
            targets = part[:, 1:]
            mask = targets != -100
            scored = token_statistics(states[name][:, :-1][mask], self.head(name), targets[mask], temperature)
            for column, values in columns.items():
                value = getattr(scored, column)
                # masked_scatter keeps the graph where no label counts, so that every exit's parameters get a gradient.
                values[name] = value.new_zeros(mask.shape).masked_scatter(mask, value)
        return FamilyOutput(**columns)

    def _resolve(self, exits: str | Sequence[str] | Mapping[str, int] | None) -> dict[str, int | None]:
        if exits is None:
            return {name: None for name in self.exits}
        names = [exits] if isinstance(exits, str) else exits
        rows = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
        unknown = [name for name in rows if name not in self.exits]
        if unknown or not rows:
            raise ValueError(f"no such exit: {unknown}; this family has {list(self.exits)}")
        return rows

    def freeze_except(self, exits: Iterable[str], only_expansion: bool = False) -> list[str]:
        """Stop gradients of every parameter that none of these exits runs through; return the frozen names.

        To be called before an optimiser or a DeepSpeed engine is built: a trainable parameter that a micro-batch leaves
        unused corrupts ZeRO-3's accumulated gradients in silence.

        Args:
            only_expansion: train the exits' expansion blocks, norms and heads alone (Ruyi2 report, DaE). No other exit
                changes then; a shared head stays as it is.

        Raises:
            ValueError: an exit that the family does not have, or with `only_expansion` one that is not expanded.
        """
        exits = list(self._resolve(list(exits)))
        names = [name for name, _ in self.named_parameters()]
        if only_expansion:
            if plain := [name for name in exits if not self.config.expansions[name]]:
                raise ValueError(f"exits {plain} have no expansion blocks; this family's: {self.config.expansions}")
            used = expansion_parameters(self.config, exits, names)
        else:
            used = parameters_of(self.config, exits, names)
        frozen = []
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in used)
            if name not in used:
                frozen.append(name)
        return frozen

    def expand(self, exit: str, blocks: int = 3, init: str = "gaussian", seed: int = 0, again: bool = False) -> Family:
        """Append decoder blocks between an exit's own layer and its norm, in place; its logits do not change at all.

        To be called on a whole family, before an optimiser or an engine is built.

        Args:
            exit: any exit, the last included.
            blocks: how many.
            init: `gaussian`: matrices with std `initializer_range`; `clone`: those of the branch's last layer. In both
                cases W_o and W_down are 0 (Ruyi2 report, §4.3.2).
            seed: decides the draws.
            again: append to an exit that has new blocks already.

        Returns:
            This family.

        Raises:
            ValueError: no such exit, blocks below 1, expanded already without `again`, or compressed.
        """
        expand(self, exit, blocks, init, seed, again)
        return self

    def compress(
        self,
        exit: str,
        ratio: float = 0.4,
        calibration: Iterable[Mapping[str, torch.Tensor]] = (),
        method: str = "budgeted",
        progress: Callable[[str], None] | None = None,
    ) -> list[MatrixReport]:
        """Store and run an expanded exit's new blocks and head as thin factors, in place (Ruyi2 report, §4.4).

        A head that all exits share stays as it is. Warns where the calibration has fewer tokens than a matrix columns.

        Args:
            exit: an exit with expansion blocks.
            ratio: share of their parameters that is removed, up to rounding ranks down.
            calibration: batches of token rows like those that the exit is to serve: dicts with `input_ids`
                (batch, length) and where rows are padded `attention_mask`.
            method: `svd`, `whitened` or `budgeted`; see `compress_matrices`.
            progress: gets a line of text now and then.

        Returns:
            A report per matrix, in the order of the blocks; the head comes last.

        Raises:
            ValueError: no such exit, not expanded, compressed already, a ratio outside (0, 1), an unknown method, no
                calibration, or NaN or infinity in it. The family is then as it was.
        """
        return compress(self, exit, ratio, calibration, method, progress)

    def branch_parameters(self, exit: str) -> int:
        """Number of parameters of an exit's branch."""
        self._resolve(exit)
        names = parameters_of(self.config, [exit], [name for name, _ in self.named_parameters()])
        # A ZeRO-3 shard has 0 elements here; DeepSpeed keeps the whole parameter's number beside it.
        return sum(getattr(p, "ds_numel", p.numel()) for name, p in self.named_parameters() if name in names)

    def branch(self, exit: str, copy: bool = True) -> PreTrainedModel:
        """The stock Qwen2ForCausalLM or Qwen3ForCausalLM of one exit; factored layers are merged.

        Args:
            exit: the exit's name.
            copy: False shares the family's tensors instead of copying them: training one then trains the other. What
                is merged is always a copy.
        """
        self._resolve(exit)
        config = self.config.branch_config(exit)
        config._attn_implementation = self.config._attn_implementation
        with torch.device("meta"):
            stock = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        own = self.state_dict()

        def tensor(source: str) -> torch.Tensor:
            parts = [own[name] for name in tensors_of(self.config, source)]
            return dense(parts).clone() if copy and len(parts) == 1 else dense(parts)

        sources = branch_sources(self.config, exit, stock.state_dict())
        _fill(stock, {name: tensor(source) for name, source in sources.items()})
        if self.generation_config is not None:
            stock.generation_config = GenerationConfig.from_dict(self.generation_config.to_dict())
        return stock.train(self.training)

    def factored_branch(self, exit: str, copy: bool = True) -> PreTrainedModel:
        """The FactoredQwen2ForCausalLM or FactoredQwen3ForCausalLM of one exit: its branch, the factors as they are.

        Args:
            exit: the exit's name.
            copy: False shares the family's tensors, as in `branch`.

        Raises:
            ValueError: no such exit, or one without factored layers.
        """
        self._resolve(exit)
        config, ranks = self.config.branch_config(exit), self.config.factor_ranks
        config._attn_implementation, config.dtype = self.config._attn_implementation, self.dtype
        with torch.device("meta"):
            stock = AutoModelForCausalLM.from_config(config)
            dense_sources = branch_sources(self.config, exit, stock.state_dict())
            factored = {
                name.removesuffix(".weight"): ranks[source.removesuffix(".weight")]
                for name, source in dense_sources.items()
                if source.removesuffix(".weight") in ranks
            }
            if not factored:
                raise ValueError(f"{exit} has no factored layers: branch() is its model")
            model = empty_model(config, factored)
        own = self.state_dict()
        sources = branch_sources(self.config, exit, model.state_dict())
        _fill(model, {name: own[source].clone() if copy else own[source] for name, source in sources.items()})
        if self.generation_config is not None:
            model.generation_config = GenerationConfig.from_dict(self.generation_config.to_dict())
        return model.train(self.training)

    @classmethod
    def from_base(
        cls,
        base: str | PreTrainedModel,
        exits: dict[str, int],
        shared_heads: bool = False,
        dtype: torch.dtype | str = torch.float32,
        **kwargs,
    ) -> Family:
        """Grow a family on a stock Qwen2, Qwen2.5 or Qwen3.

        The last exit is the base itself. Every other branch starts as the base cut after k + 1 layers: its layer copies
        `layers[k]`, its norm and head copy the base's (Ruyi2 report, initialisation).

        Args:
            base: an HF folder, a hub id, or a loaded model (whose dtype is kept, and which is not changed).
            exits: exit name -> position k; the last must be `num_hidden_layers - 1`.
            shared_heads: one LM head for all exits. A tied head stays tied only where it is shared.
            dtype: dtype to load a named base in.
            kwargs: passed to `AutoModelForCausalLM.from_pretrained`. Unless they say otherwise, only safetensors are
                read and no code of the base's is run.

        Raises:
            ValueError: a base that is no stock Qwen2 or Qwen3, or exits that do not fit it.
        """
        owned = not isinstance(base, PreTrainedModel)
        if owned:
            kwargs = {"use_safetensors": True, "trust_remote_code": False, **kwargs}
            config = AutoConfig.from_pretrained(base, trust_remote_code=kwargs["trust_remote_code"])
            FamilyConfig.from_backbone(config, exits, shared_heads)  # refuses before gigabytes are read
            base = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **kwargs)
        config = FamilyConfig.from_backbone(base.config, exits, shared_heads)
        config._attn_implementation = base.config._attn_implementation
        config.dtype = base.dtype
        with torch.device("meta"):
            family = Family(config)
        theirs = base.state_dict()
        sources = base_sources(config, theirs)
        family.to(dtype=base.dtype)
        taken = set()

        def take(tensor: torch.Tensor) -> torch.Tensor:
            # A base that nobody else holds gives its tensors away; what several exits start from is copied.
            copied = not owned or tensor.data_ptr() in taken
            taken.add(tensor.data_ptr())
            return tensor.clone() if copied else tensor

        _fill(family, {name: take(theirs[source]) for name, source in sources.items()})
        if base.generation_config is not None:
            family.generation_config = GenerationConfig.from_dict(base.generation_config.to_dict())
        return family.eval()

    @classmethod
    def from_scratch(
        cls, backbone: PreTrainedConfig, exits: dict[str, int], shared_heads: bool = False, seed: int = 0
    ) -> Family:
        """A family with random weights: a random base of this shape, grown like `from_base`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base = AutoModelForCausalLM.from_config(backbone, dtype=torch.float32)
        return cls.from_base(base, exits, shared_heads)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config: FamilyConfig | None = None, **kwargs):
        """Load a family: one saved by `save_pretrained`, or a published Ruyi or Ruyi2 checkpoint as it is; only its
        safetensors are read."""
        kwargs.setdefault("use_safetensors", True)
        if cls is not Family:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        if config is None:
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            config = FamilyConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        return _CLASSES[type(config)].from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)


def _split_rows(tensor: torch.Tensor, rows: Mapping[str, int | None]) -> dict[str, torch.Tensor]:
    if None in rows.values():
        return {name: tensor for name in rows}
    return dict(zip(rows, tensor.split(list(rows.values()))))


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Give a model built on the meta device its tensors; its rotary buffers, which none of them is, are made anew."""
    model.load_state_dict(tensors, strict=True, assign=True)
    rotary = model.model.rotary_emb
    device = next(iter(tensors.values())).device
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)
    model.tie_weights()


class Qwen3Family(Family):
    """A family over Qwen3."""

    config_class = RuyiQwen3Config


class EEQwen3Family(Family):
    """A family over Qwen3, loaded from a checkpoint that calls itself `ee_qwen3`."""

    config_class = EEQwen3Config


class Qwen2Family(Family):
    """A family over Qwen2 or Qwen2.5."""

    config_class = RuyiQwen2Config


_CLASSES = {RuyiQwen3Config: Qwen3Family, EEQwen3Config: EEQwen3Family, RuyiQwen2Config: Qwen2Family}

for _config_class, _model_class in _CLASSES.items():
    AutoModelForCausalLM.register(_config_class, _model_class)
