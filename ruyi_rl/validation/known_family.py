"""What can be told of a family without loading it: its exits, their expansion blocks, what is compressed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.validation.model import FAMILIES, family_exits, local_folder, read_model_config

FACTORED = re.compile(r"(?:model\.expansions|lm_head)\.(\d+)(?:\.|$)")
"""Module of `factor_ranks` that belongs to one exit alone; the group is the exit's index."""


@dataclass(frozen=True)
class KnownFamily:
    """A family as its config.json, or the `model` group, describes it."""

    exits: Mapping[str, int]
    """Exit name -> position k, shallowest first."""
    blocks: Mapping[str, int]
    """Exit name -> expansion blocks."""
    compressed: frozenset[str] = frozenset()
    """Exits with factored layers of their own."""

    @property
    def expanded(self) -> list[str]:
        """Exits that have expansion blocks, shallowest first."""
        return [name for name in self.exits if self.blocks[name]]

    @property
    def depths(self) -> dict[str, int]:
        """Exit name -> layers of its branch."""
        return {name: k + 1 + self.blocks[name] for name, k in self.exits.items()}


def known_family(config: RunConfig) -> KnownFamily | None:
    """The family that the first stage starts from or makes; None where only the hub can tell.

    `model.exits` beside a hub id says that it is a stock base: a family there brings its own. The configuration must
    have passed `check_model`.
    """
    key, folder = "start_from", None if config.start_from is None else Path(config.start_from)
    if folder is None and config.model.base is not None:
        key, folder = "model.base", local_folder(config.model.base)
    if folder is not None:
        stored = read_model_config(key, folder)
        if stored["model_type"] in FAMILIES:
            return described_family(stored)
    exits = config.model.exits
    return KnownFamily(dict(exits), dict.fromkeys(exits, 0)) if exits else None


def described_family(stored: Mapping[str, Any]) -> KnownFamily:
    """The family of a config.json."""
    exits = family_exits(stored)
    blocks = dict(zip(exits, stored.get("expansion_blocks") or []))
    indices = {int(match[1]) for name in stored.get("factor_ranks") or {} if (match := FACTORED.match(name))}
    compressed = frozenset(name for index, name in enumerate(exits) if index in indices)
    return KnownFamily(exits, {name: blocks.get(name, 0) for name in exits}, compressed)
