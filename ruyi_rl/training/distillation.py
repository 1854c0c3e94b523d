"""What a student's next-token distributions lose against a teacher's, without ever holding tokens × vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ruyi_rl.family.modeling_factored_qwen import FactoredLinear

TOKEN_CHUNK = 256
"""Tokens whose logits are held at once, of both heads, forwards and backwards."""


@dataclass(frozen=True)
class Divergence:
    """Per-token results, each of shape (tokens,)."""

    kl: torch.Tensor
    """KL(teacher ‖ student) in nats, float32 (float64 for float64 hidden states); the student's gradient alone."""
    agrees: torch.Tensor
    """Whether both have the same most likely token."""


def divergence(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    student_head: nn.Linear | FactoredLinear,
    teacher_head: nn.Linear | FactoredLinear,
    temperature: float = 1.0,
    chunk: int = TOKEN_CHUNK,
) -> Divergence:
    """KL(teacher ‖ student) = Σ_v p_v (log p_v - log q_v), p and q the softmax of the logits over `temperature`.

    It is not scaled by temperature², as it sometimes is to keep the gradients' size. Chunks are computed again for the
    backward pass, so that no more than one is ever held. Without tokens the result is empty and still has a graph.

    Args:
        student_hidden: (tokens, hidden).
        teacher_hidden: (tokens, hidden of the teacher); gets no gradient, nor does the teacher's head.
        student_head: (…, hidden) -> (…, vocab).
        teacher_head: likewise, over the same vocabulary.
        temperature: above 0.
        chunk: tokens at a time, at least 1.
    """

    def of_chunk(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            log_p = _log_softmax(teacher_head(teacher), temperature)
        log_q = _log_softmax(student_head(student), temperature)
        return (log_p.exp() * (log_p - log_q)).sum(-1), log_p.argmax(-1) == log_q.argmax(-1)

    parts = [
        checkpoint(of_chunk, student, teacher, use_reentrant=False)
        for student, teacher in zip(student_hidden.split(chunk), teacher_hidden.detach().split(chunk), strict=True)
    ]
    return Divergence(*(torch.cat(column) for column in zip(*parts)))


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """In float32 at least: a 16-bit sum over a vocabulary would be worth nothing."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide) / temperature, dim=-1)
