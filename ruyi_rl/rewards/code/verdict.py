"""What became of a program, and the reward for it."""

from dataclasses import dataclass

CREDITS = ("all", "share", "threshold")


@dataclass(frozen=True)
class Verdict:
    """The tests of one program."""

    reason: str
    """`passed`; else what the first test fell over: `failed` (a wrong result), `exception`, `timeout`, `memory`,
    `crash`, `flood` (too much output), `unplain` (a result that is no plain data), `missing` (no such function),
    `syntax`, or `no_program`; or why there is no verdict: `no_tests` or `bad_tests`."""
    passed: int = 0
    total: int = 0
    """Tests that ran or should have run; those after an early end are not all counted."""
    message: str = ""

    @property
    def usable(self) -> bool:
        """Whether the row could be judged at all."""
        return self.reason not in ("no_tests", "bad_tests")


def credit(verdict: Verdict, mode: str = "all", threshold: float = 0.5) -> float | None:
    """The reward of a verdict.

    Formula, with p of n tests passed: `all`: 1 if p = n > 0 and nothing else went wrong, else 0; `share`: p / n;
    `threshold`: 1 if p / n >= threshold, else 0. None where the row has no usable tests.
    """
    if not verdict.usable:
        return None
    share = verdict.passed / verdict.total if verdict.total else 0.0
    if mode == "all":
        return float(verdict.reason == "passed" and share == 1.0)
    return share if mode == "share" else float(share >= threshold)
