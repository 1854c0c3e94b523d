"""Bytes of what a forward pass keeps for its backward pass, by arithmetic. Importing this module imports no torch.

After Korthikanti et al. 2022 (Reducing activation recomputation in large transformer models, section 4), who count what
each operation of a layer saves: 34 bytes a token and hidden unit besides attention's probabilities. Counted anew for a
Qwen layer: no dropout, norms that compute in float32, gate, up and down (SwiGLU) for two matrices, grouped keys and
values, attention that saves no probabilities (flash, or memory-efficient sdpa), and tokens that leave at their exit.
With gradient checkpointing each layer keeps its input, and one layer at a time is computed again (their full
recomputation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ruyi_rl.family.shape import FamilyShape

FLOAT32 = 4
HEAD_TOKENS, HEAD_COLUMNS = 4096, {"cuda": 32768, "cpu": 4096}
"""Tokens and, by device, columns of the largest tile of logits (`token_statistics`, and TRL's kernel under it)."""
HEAD_COPIES = {"cuda": 1, "cpu": 4}
"""Float32-sized copies of a tile that are held at once; without Triton the kernel is written in torch."""


@dataclass(frozen=True)
class TokenLoad:
    """Tokens of one forward and backward pass of a rank."""

    shared: int
    """That all exits run through: prompts, or in SFT whole rows."""
    own: Mapping[str, int]
    """Exit name -> tokens that leave with it."""

    def of(self, exit: str) -> int:
        """Tokens that an exit's own layers compute."""
        return self.shared + self.own[exit]

    def layers(self, shape: FamilyShape) -> list[int]:
        """Tokens of every layer that is computed: the trunk's, then those of the exits' own."""
        deepest = max(shape.exits[exit] for exit in self.own)
        trunk = [
            self.shared + sum(tokens for exit, tokens in self.own.items() if shape.exits[exit] > depth)
            for depth in range(deepest)
        ]
        return trunk + [self.of(exit) for exit in self.own for _ in range(shape.own_layers(exit))]


def layer_bytes(shape: FamilyShape, stream: int, item: int) -> int:
    """Bytes that a layer saves for each token.

    Args:
        stream: bytes of a number in the residual stream and of a weight.
        item: bytes of a number in a matrix product.
    """
    hidden, queries, keys, wide = shape.hidden, shape.queries, shape.keys, shape.intermediate
    # Its input in float32, the normed one before its weight, and that as the input of the products after it.
    norms = 2 * hidden * (FLOAT32 + stream + item)
    head_norms = (queries + keys) * (FLOAT32 + item) if shape.qwen3 else 0
    # Queries, keys and values as attention reads them, what it gives, and that in the order of the output product.
    attention = item * (queries + 2 * keys) + 2 * item * queries
    gated = 4 * item * wide  # gate, its silu, up, and their product
    return norms + head_norms + attention + gated


def working_bytes(shape: FamilyShape, stream: int, item: int) -> int:
    """Bytes a token of the gradients that are held at once within a layer."""
    return 3 * item * shape.intermediate + 2 * stream * shape.hidden


def activation_bytes(shape: FamilyShape, load: TokenLoad, stream: int, item: int, checkpointing: bool) -> int:
    """Bytes at the moment when the backward pass begins, the last layer computed again if it has to be.

    Args:
        stream: bytes of a number in the residual stream and of a weight.
        item: bytes of a number in a matrix product.
        checkpointing: whether only each layer's input is kept.
    """
    layers, saved = load.layers(shape), layer_bytes(shape, stream, item)
    kept = sum(layers) * (stream * shape.hidden if checkpointing else saved)
    again = max(layers) * saved if checkpointing else 0
    # After the layers: each exit's norm, and the hidden states that its head reads.
    closing = sum(load.of(exit) for exit in load.own) * shape.hidden * (FLOAT32 + 2 * stream)
    return kept + again + max(layers) * working_bytes(shape, stream, item) + closing


def head_bytes(shape: FamilyShape, load: TokenLoad, item: int, device: str) -> int:
    """Bytes of scoring one exit's tokens: a tile of logits, and float32 gradients of head and hidden states.

    Args:
        item: bytes of a number in a matrix product.
        device: `cuda` or `cpu`.
    """
    tokens = max(load.of(exit) for exit in load.own)
    rows, columns = min(tokens, HEAD_TOKENS), min(shape.vocabulary, HEAD_COLUMNS[device])
    tile = rows * columns * (item if device == "cuda" else FLOAT32 * HEAD_COPIES[device])
    return tile + FLOAT32 * (shape.matrix + tokens * shape.hidden)
