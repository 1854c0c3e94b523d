"""Log-probabilities of given tokens through an LM head, without ever holding length × vocabulary logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from ruyi_rl.family.modeling_factored_qwen import FactoredLinear

VOCABULARY_CHUNK = {"cuda": 32768, "cpu": 4096}
"""Columns of a tile of logits. Without Triton the kernel holds several copies of a tile of 4,096 tokens."""
TOKEN_CHUNK = 1024


@dataclass
class TokenStatistics:
    """Per-token results, each of shape (tokens,)."""

    log_probs: torch.Tensor
    """Log-probability of the target, float32 (float64 for float64 hidden states)."""
    entropy: torch.Tensor
    """Entropy of the distribution in nats."""
    is_top1: torch.Tensor
    """Whether the target is the unique most likely token."""


def token_statistics(
    hidden: torch.Tensor, head: nn.Linear | FactoredLinear, targets: torch.Tensor, temperature: float = 1.0
) -> TokenStatistics:
    """Score `targets` under softmax(head(hidden) / temperature).

    Memory does not grow with tokens × vocabulary: TRL's chunked kernel computes tiles and recomputes them in backward,
    gathering a ZeRO-3 shard of the head in both. It sums in float32, so float64 takes a plain checkpointed path.

    Args:
        hidden: (tokens, hidden).
        head: the LM head; its weight is (vocab, hidden). Of a factored one the inner factor runs here as it is, and the
            kernel gets the outer one.
        targets: (tokens,) int64.
        temperature: the logits are divided by it.
    """
    if isinstance(head, FactoredLinear):
        hidden, head = head.v(hidden), head.u
    if hidden.dtype == torch.float64:
        return _float64_statistics(hidden, head, targets, temperature)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
            hidden,
            head.weight,
            head.bias,
            targets,
            temperature,
            VOCABULARY_CHUNK.get(hidden.device.type, VOCABULARY_CHUNK["cpu"]),
            None,
            1.0,
            ("log_probs", "entropy", "is_top1"),
        )
    return TokenStatistics(log_probs, entropy, is_top1)


def _float64_statistics(hidden, head, targets, temperature) -> TokenStatistics:
    def score(chunk, target):
        log_p = torch.log_softmax(head(chunk) / temperature, dim=-1)
        chosen = log_p.gather(-1, target[:, None])[:, 0]
        return chosen, -(log_p.exp() * log_p).sum(-1), log_p.argmax(-1) == target

    parts = [
        checkpoint(score, chunk, target, use_reentrant=False)
        for chunk, target in zip(hidden.split(TOKEN_CHUNK), targets.split(TOKEN_CHUNK))
    ]
    return TokenStatistics(*(torch.cat(column) for column in zip(*parts)))
