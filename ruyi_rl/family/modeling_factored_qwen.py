"""Qwen2 and Qwen3 some of whose linear layers are products of two thin matrices.

This file needs torch and transformers alone. An export of a compressed exit holds a copy of it, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads the factors as they are.
"""

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM


class FactoredLinear(nn.Module):
    """`y = u(v(x))`: a linear layer whose weight is the product of `u.weight` (out, rank) and `v.weight` (rank, in)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.v = nn.Linear(in_features, rank, bias=False)
        self.u = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in_features) -> (…, out_features)."""
        return self.u(self.v(x))


def factor_modules(model: nn.Module, ranks: dict[str, int]) -> None:
    """Put an empty `FactoredLinear` in the place of each named linear layer of `model`, on its device, in its dtype.

    Args:
        ranks: module name -> rank.

    Raises:
        ValueError: a name that is no linear layer's.
    """
    for name, rank in ranks.items():
        dense = model.get_submodule(name)
        if not isinstance(dense, nn.Linear):
            raise ValueError(f"{name} is a {type(dense).__name__}, not a linear layer that could have factors")
        factored = FactoredLinear(dense.in_features, dense.out_features, rank, bias=dense.bias is not None)
        model.set_submodule(name, factored.to(dense.weight.device, dense.weight.dtype))


class FactoredQwen2Config(Qwen2Config):
    """Qwen2's configuration with `factor_ranks`."""

    model_type = "factored_qwen2"
    factor_ranks: dict[str, int] | None = None
    """Module name -> rank of the layers that are factored."""


class FactoredQwen3Config(Qwen3Config):
    """Qwen3's configuration with `factor_ranks`."""

    model_type = "factored_qwen3"
    factor_ranks: dict[str, int] | None = None
    """Module name -> rank of the layers that are factored."""


class FactoredQwen2ForCausalLM(Qwen2ForCausalLM):
    """A stock Qwen2 with the layers of `config.factor_ranks` factored."""

    config_class = FactoredQwen2Config

    def __init__(self, config: FactoredQwen2Config):
        super().__init__(config)
        factor_modules(self, config.factor_ranks or {})
        self.post_init()


class FactoredQwen3ForCausalLM(Qwen3ForCausalLM):
    """A stock Qwen3 with the layers of `config.factor_ranks` factored."""

    config_class = FactoredQwen3Config

    def __init__(self, config: FactoredQwen3Config):
        super().__init__(config)
        factor_modules(self, config.factor_ranks or {})
        self.post_init()


def empty_model(config: Qwen2Config | Qwen3Config, ranks: dict[str, int]) -> PreTrainedModel:
    """A model of a stock configuration's shape with some layers factored, in its dtype, on the current device.

    Args:
        config: a stock Qwen2's or Qwen3's.
        ranks: module name -> rank.

    Raises:
        ValueError: a name that is no linear layer's.
    """
    config_class, model_class = _CLASSES[type(config)]
    values = config.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        values.pop(key, None)
    factored = config_class(**values, factor_ranks=dict(ranks))
    factored._attn_implementation = config._attn_implementation
    return model_class._from_config(factored, dtype=config.dtype)


_CLASSES = {
    Qwen2Config: (FactoredQwen2Config, FactoredQwen2ForCausalLM),
    Qwen3Config: (FactoredQwen3Config, FactoredQwen3ForCausalLM),
}

for _config_class, _model_class in _CLASSES.values():
    # Whatever is saved takes this file along, and its config.json says which class to load.
    _config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModelForCausalLM")
