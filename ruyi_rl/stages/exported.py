"""Folders of `stage=export` and `stage=serve`: where a branch goes, and what it was made from.

Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal

MARK = "exported.json"
"""File of an exported folder that says from which family and exit it was made, and in which format."""
EXPORTED = ("*.safetensors", "*.bin", "*config.json", "*token*.json", "chat_template*", "vocab*", "merges*")
"""Files of a family that an export reads."""


def default_exit(stored: Mapping[str, Any], exits: Mapping[str, int]) -> str:
    """The exit that runs where nobody chose one: the last, unless the family's config names another.

    Args:
        stored: the family's config.json.
        exits: exit name -> position k.
    """
    position = stored.get("default_early_exit_point", -1)
    return next((name for name, k in exits.items() if k == position), list(exits)[-1])


def factored_modules(stored: Mapping[str, Any], exits: Mapping[str, int], exit: str) -> list[str]:
    """Names of the layers of an exit's branch that the family stores as factors.

    Args:
        stored: the family's config.json.
        exits: exit name -> position k.
        exit: one of them.
    """
    index, trunk = list(exits).index(exit), exits[exit]
    if index == len(exits) - 1:
        trunk += 1
    own = [f"model.{part}.{index}." for part in ("eelayers", "expansions")] + [f"lm_head.{index}."]
    prefixes = (*own, *(f"model.layers.{layer}." for layer in range(trunk)))
    names = stored.get("factor_ranks") or {}
    return [name for name in names if name == "lm_head" or f"{name}.".startswith(prefixes)]


def export_folder(config: RunConfig, exit: str) -> Path:
    """Where the branch goes, as an absolute path: it may be loaded or served from anywhere."""
    if config.stage.name == "export":
        output, usual = config.export.output, Path("export") / f"{exit}-{config.export.format}"
    else:
        output, usual = config.serve.output, Path("serve") / exit
    return (Path(output) if output else Path(config.run_dir) / usual).absolute()


def origin(family: Path, exit: str, format: str) -> dict[str, str]:
    """What an export is made from and how; changes with the family's configuration, weights or tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in EXPORTED for path in family.glob(pattern)}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    fingerprint = digest.hexdigest()[:12]
    return {"family": str(family.absolute()), "exit": exit, "format": format, "fingerprint": fingerprint}


def exported_from(folder: Path) -> dict[str, Any] | None:
    """What an exported folder says of itself: its origin, parameters and bytes; None where nothing was exported, and {}
    where that was cut short."""
    try:
        return json.loads((folder / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def is_export(folder: Path, made_from: Mapping[str, str]) -> bool:
    """Whether a folder holds the whole export of this origin."""
    return made_from.items() <= (exported_from(folder) or {}).items()


def require_own(key: str, folder: Path) -> None:
    """Refuse a folder that holds what no export wrote."""
    if folder.is_dir() and any(folder.iterdir()) and exported_from(folder) is None:
        raise Refusal(key, f"{folder} holds files that no export wrote", "another folder")
