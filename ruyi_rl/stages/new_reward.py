"""`stage=new_reward`: writes a reward that works at once, its config and its test. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ruyi_rl.cli.compose import ConfigSource
from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.rewards.drafts import check_name, draft
from ruyi_rl.rewards.paths import shipped_plugins
from ruyi_rl.validation.folders import require_folder

MEANINGS = ("the reward: edit it", "its config, which reward={name} chooses", "its test: pytest {path}")


def run(config: RunConfig) -> None:
    """Writes the three files into the working folder, and prints where they are and what comes next.

    Raises:
        Refusal: a name that cannot be, a file in the way, or a folder that cannot be written. Nothing is written then.
    """
    name, kind = config.name, config.new_reward.kind
    check_name(name, kind, shipped_names())
    files = draft(name, kind)
    for path in files:
        if os.path.lexists(path):
            raise Refusal("name", f"{path} is there already", "another name, or move that file away")
        require_folder("name", Path(path).parent)
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    _print(name, list(files))


def shipped_names() -> set[str]:
    """Names of the shipped plugins, and of the shipped choices of `reward`."""
    return {*ConfigSource().choices()["reward"], *(Path(path).stem for path in shipped_plugins())}


def _print(name: str, paths: list[str]) -> None:
    console = run_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for path, meaning in zip(paths, MEANINGS, strict=True):
        table.add_row(f"[bold]{escape(path)}[/]", escape(meaning.format(name=name, path=path)))
    console.print(table)
    # Not wrapped, so that a line can be copied as it is.
    console.print(f"\nCheck it: python -m ruyi_rl stage=check_reward reward={name}", soft_wrap=True, markup=False)
    console.print(f"Use it:   python -m ruyi_rl stage=grpo reward={name}", soft_wrap=True, markup=False)
