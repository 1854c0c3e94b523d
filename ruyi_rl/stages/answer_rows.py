"""`generate.output`: completions as JSON lines. Importing this module imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruyi_rl.rollout.worker import Completion

Record = Callable[[dict[str, Any]], None]
"""Takes one completion as a row."""


@contextmanager
def recording(path: str | None) -> Iterator[Record | None]:
    """What writes rows to a file, each at once, so that an interrupted command keeps them; None without a file."""
    if path is None:
        yield None
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:

        def record(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield record


def answer_row(prompt: Any, exit: str, sample: int, completion: Completion, text: str) -> dict[str, Any]:
    """One completion of a prompt, which is given as it was asked: text or messages."""
    return {
        "prompt": prompt,
        "exit": exit,
        "sample": sample,
        "completion": text,
        "tokens": len(completion.token_ids),
        "finished": completion.finished,
    }
