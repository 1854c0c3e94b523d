"""The verdict on a completion: its final answer against the gold answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from ruyi_rl.rewards.mathematics.equality import Comparison, same_answer
from ruyi_rl.rewards.mathematics.extraction import MAX_BOXES, boxes, final_answers, gold_answer

__all__ = ["Verdict", "boxes", "final_answers", "gold_answer", "judge"]


@dataclass(frozen=True)
class Verdict:
    """`correct` is None where the gold answer cannot be used; `reason` says in one word what decided."""

    correct: bool | None
    reason: str
    answer: str | None = None


def judge(text: str, gold: str | Sequence[str] | float | None) -> Verdict:
    """The verdict on a completion.

    Args:
        text: the completion.
        gold: the right answer: text, a number, or several answers of which any one is right. None or "" is unusable.

    Returns:
        The verdict. Reasons of a right one: `equal_text`, `equal_number`, `equal_structure` (lists, sets, words in
        another form) and `equal_symbolic`, by what decided. Of a wrong one: `different`; `no_answer`; `contradiction`
        (boxes that do not belong together, the last one right, another one not); `flood` (more than `MAX_BOXES`
        different boxes); `restated`, `chain`, `ambiguous`: see `evasion`; `too_long`, `too_costly`, `too_slow`: not
        compared to the end. Without a usable gold answer: `no_gold`.
    """
    golds = [gold] if isinstance(gold, (str, int, float)) else list(gold or [])
    golds = [answer for answer in (gold_answer(str(item)) for item in golds if item is not None) if answer]
    if not golds:
        return Verdict(None, "no_gold")
    found = final_answers(text)
    if not found:
        return Verdict(False, "no_answer")
    if len(found) > MAX_BOXES:
        return Verdict(False, "flood", found[-1])
    reasons: list[str] = []
    deadline = Comparison().deadline
    for candidate in reversed(found):
        equal, reason = _compared(golds, candidate, deadline)
        if not equal:
            return Verdict(False, "contradiction" if reasons else reason, found[-1])
        reasons.append(reason)
    return Verdict(True, reasons[0], found[-1])


def _compared(golds: list[str], candidate: str, deadline: float) -> tuple[bool, str]:
    for gold in golds:
        comparison = Comparison(deadline)
        equal = same_answer(gold, candidate, comparison)
        reason = comparison.reason(equal)
        if equal:
            break
    return equal, reason
