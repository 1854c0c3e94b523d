"""What came out of one call or run of a confined program."""

from dataclasses import dataclass
from typing import Any

KINDS = ("value", "iterator", "exit", "exception", "timeout", "crash", "memory", "flood", "unplain", "missing")


@dataclass(frozen=True)
class Outcome:
    """One of `KINDS`, and what belongs to it.

    - `value`: the function returned `value`, plain data of exact types; what it returned of other types is given as
      `conversion` says.
    - `iterator`: it returned an iterator (a generator, `map` …); `value` is a list of its items.
    - `exit`: the script ended; `value` is its exit status, 0 to 255.
    - `exception`: `value` is the name of its class, `message` is "ValueError: …".
    - `timeout`, `memory`: over a limit. `flood`: too much output, or too large a value.
    - `crash`: the program's process ended, or broke the protocol, before it gave an answer.
    - `unplain`: the value is no plain data. `missing`: the program defines no such function.
    """

    kind: str
    value: Any = None
    stdout: str = ""
    """What it printed during this call, decoded as UTF-8 with replacement characters."""
    message: str = ""
    """One line of printable characters. The program wrote part of it: believe nothing that it says."""
    seconds: float = 0.0
    """Wall clock of this call."""
    loading: bool = False
    """It came of the program's definitions, before any function was called."""
    args: list | None = None
    """The positional arguments after the call, where one of them is a list, dict or set, and all are plain data."""
