"""1.0 for the right mathematical answer, 0.0 for any other.

Formula: r = 1 if the completion's final answer equals the row's `answer`, else 0; None where the row has no answer.

The final answer is the last box outside the thinking, else what follows `####`, "the answer is" or 答案. Text and
decimals decide first; math-verify (https://github.com/huggingface/Math-Verify) decides the rest. An answer that
restates the question, a chain of equations, and boxes that contradict each other are wrong; units of one kind are
converted, different ones differ. Integers must be met
exactly; of two decimals the shorter must be the longer one rounded (see `close` in
`ruyi_rl.rewards.mathematics.numbers`). Every verdict logs why, in `math_answer/reason`: `ruyi_rl.rewards.answers.judge`
lists the reasons.
"""

from ruyi_rl.rewards.answers import judge
from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.mathematics.parser_check import check_parser


def math_answer(completions, answer, log_extra=None, **kwargs) -> list[float | None]:
    """One reward a completion; `answer`: the right answers, in LaTeX or plain text, one a completion."""
    verdicts = [judge(completion_text(text), gold) for text, gold in zip(completions, answer, strict=True)]
    if log_extra is not None:
        log_extra("math_answer/answer", [verdict.answer or "" for verdict in verdicts])
        log_extra("math_answer/reason", [verdict.reason for verdict in verdicts])
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


def _start(**kwargs) -> None:
    """Called once in every worker before it judges: a parser that grades otherwise stops the run here."""
    check_parser()
