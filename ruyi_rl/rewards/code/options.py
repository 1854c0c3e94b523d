"""Options of `rewards/code_tests.py`. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rewards.code.extraction import TAGS
from ruyi_rl.rewards.code.verdict import CREDITS
from ruyi_rl.rewards.sandbox import SandboxOptions


@dataclass(frozen=True)
class CodeOptions:
    """How programs are run and what their tests are worth."""

    credit: str = "all"
    """`all`: 1 where every test passes, which ends at the first that does not; `share`: the share of tests passed;
    `threshold`: 1 where the share reaches `threshold`."""
    threshold: float = 0.5
    """In (0, 1]."""
    seconds: float = 5.0
    """Wall clock of one program with all its tests."""
    memory_mb: int = 512
    """MiB that a program, and all that it starts, may hold."""
    sandbox: str = "bubblewrap"
    """`bubblewrap`, or `none`: the program runs as a plain subprocess and can do whatever you can."""
    warm: bool = True
    """Keep interpreters started for the next programs."""
    language: str = "python"
    """The programs' language."""

    def __post_init__(self) -> None:
        key = "reward.functions.code_tests.kwargs"
        for name, choices in (("credit", CREDITS), ("language", tuple(TAGS))):
            given = getattr(self, name)
            if given not in choices:
                raise Refusal(f"{key}.{name}", f"{given!r} is unknown", nearest(str(given), choices))
        if not 0 < self.threshold <= 1:
            raise Refusal(f"{key}.threshold", f"{self.threshold!r} is no share of tests", "above 0, at most 1")
        self.sandbox_options()

    def sandbox_options(self) -> SandboxOptions:
        """The same for the sandbox.

        Raises:
            Refusal: a mode or a limit that the sandbox does not know.
        """
        return SandboxOptions(mode=self.sandbox, seconds=self.seconds, memory_mb=self.memory_mb, warm=self.warm)
