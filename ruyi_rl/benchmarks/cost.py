"""What an answer costs in floating-point operations."""

from __future__ import annotations

import math

from ruyi_rl.family.stored import StoredFamily

EMBEDDINGS = "model.embed_tokens.weight"


def passed_parameters(stored: StoredFamily, exit: str) -> int:
    """Parameters of an exit's branch that a token passes through, its head included; factors count as factors.

    Input embeddings are looked up and not multiplied: they count where they are the head as well.
    """
    branch = stored.branch(exit)
    untied = EMBEDDINGS in branch and not stored.config.tie_word_embeddings
    return stored.size(exit).parameters - (math.prod(branch[EMBEDDINGS].shape) if untied else 0)


def teraflops(parameters: int, tokens: float) -> float:
    """10^12 operations of a forward pass over `tokens`, 2 · parameters each: a multiplication and an addition.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, §2.1, without the attention to the context
    (2 · layers · context · width a token), which is small beside it for contexts below a few thousand tokens.

    Args:
        parameters: see `passed_parameters`.
        tokens: of prompt and completion.
    """
    return 2e-12 * parameters * tokens
