"""A family's sizes, told from its config.json or its base's. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

HEAD_SIZES = {"qwen3": 128}
"""Backbone -> size of an attention head where its config does not say; another's follows from width and heads."""


@dataclass(frozen=True)
class FamilyShape:
    """What decides how many parameters a family has, and how large its activations are."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    layers: int
    vocabulary: int
    exits: Mapping[str, int]
    """Exit name -> position k, shallowest first."""
    blocks: Mapping[str, int]
    """Exit name -> expansion blocks."""
    shared_heads: bool = False
    """Whether all exits have one head."""
    tied: bool = False
    """Whether that one is the embedding."""
    qwen3: bool = True
    """Whether queries and keys have norms (Qwen3), or projections have biases (Qwen2)."""

    @property
    def queries(self) -> int:
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Numbers of a token's keys, and of its values."""
        return self.key_value_heads * self.head_size

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        projections = 2 * self.hidden * (self.queries + self.keys) + 3 * self.hidden * self.intermediate
        small = 2 * self.head_size if self.qwen3 else self.queries + 2 * self.keys
        return projections + small + 2 * self.hidden

    @property
    def matrix(self) -> int:
        """Parameters of the embedding, or of a head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole family."""
        count = len(self.exits)
        layers = self.layers + count - 1 + sum(self.blocks.values())
        return layers * self.layer + count * self.hidden + self.matrix + self._heads(count)

    def depth(self, exit: str) -> int:
        """Layers of an exit's branch."""
        return self.exits[exit] + 1 + self.blocks.get(exit, 0)

    def own_layers(self, exit: str) -> int:
        """Layers that are the exit's alone: the last exit's is the trunk's last."""
        return 1 + self.blocks.get(exit, 0)

    def branch(self, exit: str) -> int:
        """Parameters that one exit runs through."""
        return self.depth(exit) * self.layer + self.hidden + self.matrix + self._heads(1)

    def trained(self, exits: Collection[str], train_only: str | None = None) -> int:
        """Parameters that take gradients where these exits are trained.

        Args:
            train_only: None, or `expansion`: new blocks, norms and heads alone.
        """
        count, blocks = len(exits), sum(self.blocks.get(exit, 0) for exit in exits)
        if train_only is not None:
            # A tied head is everyone's embedding, and stays as it is.
            return blocks * self.layer + count * self.hidden + self._heads(count)
        deepest = max(self.exits[exit] for exit in exits)
        layers = deepest + count + blocks
        return layers * self.layer + count * self.hidden + self.matrix + self._heads(count)

    def _heads(self, count: int) -> int:
        """Parameters of so many exits' heads, without the embedding."""
        if self.shared_heads:
            return 0 if self.tied else self.matrix
        return count * self.matrix


def family_shape(
    stored: Mapping[str, Any],
    exits: Mapping[str, int],
    blocks: Mapping[str, int] | None = None,
    shared_heads: bool = False,
) -> FamilyShape:
    """The shape of the family that a config describes.

    Args:
        stored: config.json of a family or of a stock Qwen2 or Qwen3.
        exits: exit name -> position k, shallowest first.
        blocks: exit name -> expansion blocks; None: as the config says.
        shared_heads: where the config does not say it.
    """
    qwen3 = "qwen3" in stored["model_type"]
    heads, hidden = stored["num_attention_heads"], stored["hidden_size"]
    size = stored.get("head_dim") or HEAD_SIZES.get("qwen3" if qwen3 else "", hidden // heads)
    if blocks is None:
        blocks = dict(zip(exits, stored.get("expansion_blocks") or [0] * len(exits)))
    return FamilyShape(
        hidden=hidden,
        intermediate=stored["intermediate_size"],
        heads=heads,
        key_value_heads=stored.get("num_key_value_heads") or heads,
        head_size=size,
        layers=stored["num_hidden_layers"],
        vocabulary=stored["vocab_size"],
        exits=dict(exits),
        blocks=blocks,
        shared_heads=stored.get("shared_heads", shared_heads),
        tied=bool(stored.get("tie_word_embeddings")),
        qwen3=qwen3,
    )
