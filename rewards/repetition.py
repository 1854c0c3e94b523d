"""A penalty for repeated n-grams.

Formula: r = p (1 - unique n-grams / all n-grams), p = `max_penalty` <= 0; 0 for a completion of fewer than n words.
Source: Demystifying Long Chain-of-Thought Reasoning (https://arxiv.org/abs/2502.03373), appendix C.2; TRL's
`get_repetition_penalty_reward` is the same with `unit="tokens"`.
"""

import math

from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.words import words


def repetition(completions, ngram_size=3, max_penalty=-1.0, unit="words", completion_ids=None, **kwargs) -> list[float]:
    """One reward a completion, in [max_penalty, 0].

    `unit`: `words` (without regard to case; every character of a script without spaces, such as Chinese, is a word),
    `characters` or `tokens`. Raises ValueError for options that are impossible.
    """
    _start(ngram_size, max_penalty, unit)
    if unit == "tokens" and completion_ids is None:
        raise ValueError("unit='tokens' needs completion_ids, which were not passed: unit='words' or 'characters'")
    if unit == "tokens":
        sequences = completion_ids
    else:
        texts = [completion_text(completion).lower() for completion in completions]
        sequences = [words(text) if unit == "words" else text for text in texts]
    return [max_penalty * share if (share := _repeated(items, ngram_size)) else 0.0 for items in sequences]


def _start(ngram_size=3, max_penalty=-1.0, unit="words", **kwargs) -> None:
    """Refuse options that are impossible."""
    if not isinstance(ngram_size, int) or isinstance(ngram_size, bool) or not 1 <= ngram_size <= 64:
        raise ValueError(f"ngram_size is a whole number from 1 to 64, not {ngram_size!r}")
    if not isinstance(max_penalty, (int, float)) or not math.isfinite(max_penalty) or max_penalty > 0:
        raise ValueError(f"max_penalty is a penalty, 0 or less, not {max_penalty!r}")
    if unit not in ("words", "characters", "tokens"):
        raise ValueError(f"unit is 'words', 'characters' or 'tokens', not {unit!r}")


def _repeated(items, size) -> float:
    """The share of n-grams that stood before."""
    total = len(items) - size + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(items[start:] for start in range(size)), strict=False))) / total
