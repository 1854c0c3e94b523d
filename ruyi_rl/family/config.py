"""Configuration of a family: a Qwen2 or Qwen3 configuration with the published early-exit keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from transformers import AutoConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

FAMILY_KEYS = (
    "early_exit_points",
    "exit_names",
    "shared_heads",
    "default_early_exit_point",
    "expansion_blocks",
    "factor_ranks",
)


@dataclass(kw_only=True)
class FamilyConfig:
    """What a family adds to its backbone's configuration. The keys are those of the published Ruyi checkpoints, and two
    for DaE: `expansion_blocks` and `factor_ranks`.

    `FamilyConfig.from_pretrained` and `FamilyConfig.from_backbone` return the class for the backbone at hand:
    `RuyiQwen2Config` or `RuyiQwen3Config`.

    Raises:
        ValueError: exit positions that do not increase or do not end at the last layer; names or expansion blocks that
            do not fit them.
    """

    # TRL builds the reference model from this configuration and reads `auto_map` without a default. Without an
    # annotation it is a class attribute, so it is not written to config.json.
    auto_map = MappingProxyType({})

    early_exit_points: list[int] = field(default_factory=list)
    """Position k of each exit, increasing: the number of trunk layers below its branch. Empty: the last layer only."""
    exit_names: list[str] | None = None
    """Name of each exit; None (a published checkpoint): `exit<k>`."""
    shared_heads: bool = False
    """One LM head for all exits."""
    default_early_exit_point: int = -1
    """Position of the exit that runs where nobody chose one; -1: the last."""
    expansion_blocks: list[int] = field(default_factory=list)
    """Blocks that stand between each exit's own layer and its norm, shallowest exit first. Empty: none anywhere."""
    factor_ranks: dict[str, int] = field(default_factory=dict)
    """Module name -> rank of the linear layers that are stored and run as two factors."""

    def __post_init__(self, **kwargs):
        # The published configs carry sliding_window=4096, which masks longer contexts under sdpa and eager attention.
        self.use_sliding_window = False
        self.layer_types = ["full_attention"] * self.num_hidden_layers
        if not self.shared_heads:
            self.tie_word_embeddings = False
        if not self.early_exit_points:
            self.early_exit_points = [self.num_hidden_layers - 1]
        if self.exit_names is None:
            self.exit_names = [f"exit{k}" for k in self.early_exit_points]
        check_exits(dict(zip(self.exit_names, self.early_exit_points)), self.num_hidden_layers)
        if len(set(self.exit_names)) != len(self.early_exit_points):
            raise ValueError(f"exit_names {self.exit_names} do not name the exits {self.early_exit_points} one by one")
        if self.default_early_exit_point not in (-1, *self.early_exit_points):
            raise ValueError(
                f"default_early_exit_point {self.default_early_exit_point} is none of {self.early_exit_points}"
            )
        blocks = self.expansion_blocks
        if blocks and (len(blocks) != len(self.early_exit_points) or min(blocks) < 0):
            raise ValueError(f"expansion_blocks {blocks} are not one number, 0 or more, for each of {self.exit_names}")
        super().__post_init__(**kwargs)

    def to_dict(self):
        """The values as they are saved; the keys of DaE only where they say something."""
        values = super().to_dict()
        for key in ("expansion_blocks", "factor_ranks"):
            if not values.get(key):
                values.pop(key, None)
        return values

    @property
    def exits(self) -> dict[str, int]:
        """Exit name -> position k, shallowest first."""
        return dict(zip(self.exit_names, self.early_exit_points))

    @property
    def expansions(self) -> dict[str, int]:
        """Exit name -> blocks between its own layer and its norm, shallowest exit first."""
        return dict(zip(self.exit_names, self.expansion_blocks or [0] * len(self.exit_names)))

    @property
    def depths(self) -> dict[str, int]:
        """Exit name -> layers of its branch, k + 1 and its expansion blocks."""
        return {name: k + 1 + self.expansions[name] for name, k in self.exits.items()}

    @property
    def default_exit(self) -> str:
        """Name of the exit that runs where nobody chose one."""
        if self.default_early_exit_point == -1:
            return self.exit_names[-1]
        return self.exit_names[self.early_exit_points.index(self.default_early_exit_point)]

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        """Load the configuration of a family from a folder or hub id; `ee_qwen3` counts as `ruyi_qwen3`."""
        if cls is not FamilyConfig:
            return super().from_pretrained(path, **kwargs)
        config = AutoConfig.from_pretrained(path, **{"trust_remote_code": False, **kwargs})
        if not isinstance(config, FamilyConfig):
            raise ValueError(f"{path} holds a {config.model_type!r} model, not a family: Family.from_base makes one")
        return config

    @classmethod
    def from_backbone(cls, backbone: PreTrainedConfig, exits: dict[str, int], shared_heads: bool = False):
        """The configuration of a family over a stock Qwen2 or Qwen3.

        Args:
            backbone: the stock model's configuration.
            exits: exit name -> position k; the last must be `num_hidden_layers - 1`.
            shared_heads: one LM head for all exits (needed to keep a tied head tied).
        """
        if backbone.model_type not in BACKBONES:
            raise ValueError(f"a family is built over {' or '.join(BACKBONES)}, not over {backbone.model_type!r}")
        exits = dict(sorted(exits.items(), key=lambda item: item[1]))
        values = backbone.to_dict()
        for key in ("model_type", "architectures", "transformers_version", "layer_types", "auto_map"):
            values.pop(key, None)
        config = BACKBONES[backbone.model_type](
            **values,
            early_exit_points=list(exits.values()),
            exit_names=list(exits) or None,
            shared_heads=shared_heads,
        )
        config._name_or_path = backbone._name_or_path
        return config

    def branch_config(self, exit: str) -> PreTrainedConfig:
        """The stock Qwen configuration of one exit's branch: its depth, no family keys, factored layers merged."""
        values = self.to_dict()
        for key in (*FAMILY_KEYS, "model_type", "architectures", "transformers_version", "layer_types", "auto_map"):
            values.pop(key, None)
        values["num_hidden_layers"] = self.depths[exit]
        return self.backbone_config_class(**values)


def check_exits(exits: dict[str, int], num_hidden_layers: int) -> None:
    """Raise ValueError unless the positions increase, lie in the model and end at its last layer."""
    points = list(exits.values())
    last = num_hidden_layers - 1
    if not points or points != sorted(set(points)) or points[0] < 0 or points[-1] != last:
        raise ValueError(
            f"exit positions {points} must increase, lie between 0 and {last} and end at {last}, "
            f"the last of {num_hidden_layers} layers"
        )


class RuyiQwen3Config(FamilyConfig, Qwen3Config):
    """A family over Qwen3."""

    model_type = "ruyi_qwen3"
    backbone_config_class = Qwen3Config


class EEQwen3Config(RuyiQwen3Config):
    """The same under the name that the published Ruyi2 page carries."""

    model_type = "ee_qwen3"


class RuyiQwen2Config(FamilyConfig, Qwen2Config):
    """A family over Qwen2 or Qwen2.5."""

    model_type = "ruyi_qwen2"
    backbone_config_class = Qwen2Config


BACKBONES = {"qwen2": RuyiQwen2Config, "qwen3": RuyiQwen3Config}

for _config_class in (RuyiQwen3Config, EEQwen3Config, RuyiQwen2Config):
    AutoConfig.register(_config_class.model_type, _config_class)
