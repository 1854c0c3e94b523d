"""The one exception for a run that must not start: it names the key, what was given and what is allowed."""

import difflib
from collections.abc import Iterable


class Refusal(Exception):
    """A command or a configuration that cannot run; `__main__` prints it and exits with status 2, without a traceback.

    Args:
        key: the config key (or file) at fault, as a user would type it.
        problem: what is wrong, with the value that was given.
        allowed: what would be accepted instead, or how to mend it.
    """

    def __init__(self, key: str, problem: str, allowed: str = ""):
        self.key, self.problem, self.allowed = key, problem, allowed
        super().__init__(f"{key}: {problem}" + (f" ({allowed})" if allowed else ""))


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest choice, or the sorted list of choices where none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "one of: " + ", ".join(choices)
