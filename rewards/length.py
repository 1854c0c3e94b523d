"""A reward for the length of a completion, in three forms.

Formulas, L the completion's length:
- `mode="dapo"`, limit M, cache C: r = 0 if L <= M - C; (M - C - L) / C if M - C < L <= M; -1 if L > M.
  Source: DAPO (https://arxiv.org/abs/2503.14476), equation 13.
- `mode="cosine"`, limit M: r = long + (short - long) (1 + cos(pi L / M)) / 2, L cut at M, where (short, long) is
  (`max_value_correct`, `min_value_correct`) for a right answer, (`min_value_wrong`, `max_value_wrong`) for a wrong one;
  r = `exceed` from L = M on, where that is given.
  Source: Demystifying Long Chain-of-Thought Reasoning (https://arxiv.org/abs/2502.03373), appendix C.1; the values and
  their names are those of TRL's `get_cosine_scaled_reward`.
- `mode="kimi"`, in a group (the completions of a prompt and exit): t = 0.5 - (L - shortest) / (longest - shortest);
  r = t for a right answer, min(0, t) for a wrong one, 0 where all lengths are equal.
  Source: Kimi k1.5 (https://arxiv.org/abs/2501.12599), section 2.3.3. Its config needs `scope: group`.
"""

import json
import math

from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.words import words


def length(
    completions,
    mode="dapo",
    limit=None,
    cache=0,
    unit="tokens",
    min_value_wrong=-1.0,
    max_value_wrong=-0.5,
    min_value_correct=0.5,
    max_value_correct=1.0,
    exceed=None,
    correct=None,
    answer=None,
    completion_ids=None,
    prompts=None,
    exit=None,
    **kwargs,
) -> list[float | None]:
    """One reward a completion; None where it must be right or wrong and the row has no answer.

    Args:
        mode: `dapo`, `cosine` or `kimi`.
        limit, cache: M and C of the formulas, in `unit`; a cache below 1 is a share of the limit.
        unit: `tokens`, `words` (a Chinese character is one) or `characters`.
        correct: which completions are right, where that is known: true (behind a gate, for instance), or one a row.
        answer: else the right answers, judged as `math_answer` does.

    Raises:
        ValueError: options that are impossible, or a column that is not there.
    """
    wrong, right = (min_value_wrong, max_value_wrong), (max_value_correct, min_value_correct)
    _check(mode, limit, cache, unit, wrong, right, exceed)
    sizes = _sizes(completions, completion_ids, unit)
    if mode == "dapo":
        return [_dapo(size, limit, cache * limit if cache < 1 else cache) for size in sizes]
    known = _verdicts(completions, answer, correct, mode)
    if mode == "kimi":
        return _kimi(sizes, known, _groups(prompts, exit, len(completions)))
    return [
        None if is_right is None else _cosine(size, limit, *(right if is_right else wrong), exceed)
        for size, is_right in zip(sizes, known, strict=True)
    ]


def _start(scope="sample", **kwargs) -> None:
    """Refuse options that are impossible, before the first completion."""
    if kwargs.get("mode") == "kimi" and scope == "sample":
        raise ValueError("mode='kimi' compares the completions of a group, which needs scope: group")
    length([], **kwargs | {"completion_ids": [], "answer": [], "prompts": []})


def _check(mode, limit, cache, unit, wrong, right, exceed) -> None:
    if mode not in ("dapo", "cosine", "kimi"):
        raise ValueError(f"mode is 'dapo', 'cosine' or 'kimi', not {mode!r}")
    if unit not in ("tokens", "words", "characters"):
        raise ValueError(f"unit is 'tokens', 'words' or 'characters', not {unit!r}")
    if mode != "kimi" and not (_is_finite(limit) and limit > 0):
        raise ValueError(f"mode={mode!r} needs limit, a number of {unit} above 0, not {limit!r}")
    if mode == "dapo" and not (_is_finite(cache) and 0 <= cache <= limit):
        raise ValueError(f"cache is a number from 0 to limit={limit}, not {cache!r}")
    values = [*wrong, *right] if exceed is None else [*wrong, *right, exceed]
    if not all(map(_is_finite, values)):
        raise ValueError(f"min_value_…, max_value_… and exceed are finite numbers, not {values}")
    if wrong[0] > wrong[1] or right[0] < right[1]:
        raise ValueError(f"a min_value_… is above its max_value_…: wrong {wrong}, correct {right[::-1]}")


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sizes(completions, completion_ids, unit) -> list[int]:
    if unit == "tokens":
        if completion_ids is None:
            raise ValueError("unit='tokens' needs completion_ids, which were not passed: unit='words' or 'characters'")
        return [len(ids) for ids in completion_ids]
    texts = [completion_text(completion) for completion in completions]
    return [len(words(text) if unit == "words" else text) for text in texts]


def _verdicts(completions, answer, correct, mode) -> list[bool | None]:
    if correct is not None:
        return [correct] * len(completions) if isinstance(correct, bool) else list(correct)
    if answer is None:
        raise ValueError(f"mode={mode!r} must know which completions are right: a column `answer`, or `correct`")
    from ruyi_rl.rewards.answers import judge

    return [judge(completion_text(text), gold).correct for text, gold in zip(completions, answer, strict=True)]


def _groups(prompts, exits, count) -> list[str]:
    if prompts is None:
        raise ValueError("mode='kimi' compares the completions of a prompt, and no prompts were passed")
    exits = exits if isinstance(exits, (list, tuple)) else [exits] * count
    return [json.dumps(pair, sort_keys=True, default=str) for pair in zip(prompts, exits, strict=True)]


def _dapo(size, limit, cache) -> float:
    if size <= limit - cache:
        return 0.0
    return (limit - cache - size) / cache if size <= limit else -1.0


def _cosine(size, limit, short, long, exceed) -> float:
    if exceed is not None and size >= limit:
        return float(exceed)
    return long + 0.5 * (short - long) * (1 + math.cos(math.pi * min(size / limit, 1)))


def _kimi(sizes, known, groups) -> list[float | None]:
    members: dict[str, list[int]] = {}
    for size, group in zip(sizes, groups, strict=True):
        members.setdefault(group, []).append(size)
    spans = {group: (min(found), max(found)) for group, found in members.items()}
    rewards: list[float | None] = []
    for size, is_right, group in zip(sizes, known, groups, strict=True):
        shortest, longest = spans[group]
        term = 0.5 - (size - shortest) / (longest - shortest) if longest > shortest else 0.0
        rewards.append(None if is_right is None else term if is_right else min(0.0, term))
    return rewards
