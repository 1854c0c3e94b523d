"""Where a run prints. Importing this module imports no torch."""

import sys

from rich.console import Console

from ruyi_rl import ranks

PLAIN_WIDTH = 120
"""Columns where the output is no terminal: wide enough for the tables, so that a log keeps them whole."""


def run_console() -> Console:
    """A console on stdout for rank 0, a silent one for the others."""
    return Console(
        quiet=ranks.rank() > 0, highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH, soft_wrap=False
    )
