"""Folders of `stage=serve`: where a branch goes, and what it was made from. Importing this module imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal

MARK = "exported.json"
"""File of an exported folder that says from which family and exit it was made."""
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


def export_folder(config: RunConfig, exit: str) -> Path:
    """Where the branch goes, as an absolute path: a server may be started from anywhere."""
    folder = Path(config.serve.output) if config.serve.output else Path(config.run_dir) / "serve" / exit
    return folder.absolute()


def origin(family: Path, exit: str) -> dict[str, str]:
    """What an export is made from; changes with the family's configuration, weights or tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in EXPORTED for path in family.glob(pattern)}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return {"family": str(family.absolute()), "exit": exit, "fingerprint": digest.hexdigest()[:12]}


def exported_from(folder: Path) -> dict[str, str] | None:
    """The origin that an exported folder names; None where nothing was exported, and {} where that was cut short."""
    try:
        return json.loads((folder / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def require_own(folder: Path) -> None:
    """Refuse a folder that holds what no export wrote."""
    if folder.is_dir() and any(folder.iterdir()) and exported_from(folder) is None:
        raise Refusal("serve.output", f"{folder} holds files that no export wrote", "another folder")
