"""Folders of `stage=export` and `stage=serve`: where a branch goes, and what it was made from.

Importing this module imports no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.options import FAMILY_FORMATS

MARK = "exported.json"
"""File of an exported folder that says from which family and exit it was made, and in which format."""
TOLD = ("parameters", "bytes", "dtype", "difference", "allowed", "vllm")
"""Keys of that file, besides its origin, without which it is another version's."""
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


@dataclass(frozen=True)
class Target:
    """One folder that is exported to."""

    exit: str | None
    """The exit whose branch it holds; None: all of the family."""
    format: str
    folder: Path
    """Absolute: it may be loaded or served from anywhere."""

    @property
    def content(self) -> str:
        """What it holds, for messages."""
        return "the family" if self.exit is None else self.exit


def asked_exits(config: RunConfig) -> list[str] | None:
    """The names that `export.exit` holds; None: all exits.

    Raises:
        Refusal: neither a name nor a list of names.
    """
    asked = config.export.exit
    if asked is None:
        return None
    names = asked if isinstance(asked, list) else [asked]
    if not names or any(isinstance(name, (dict, list, bool)) or name is None for name in names):
        raise Refusal("export.exit", f"{asked!r} is not possible", "a name, a list of names, or null: each exit")
    return [str(name) for name in names]


def export_targets(config: RunConfig, stored: Mapping[str, Any], exits: Mapping[str, int]) -> list[Target]:
    """The folders that `stage=export` writes, shallowest exit first.

    Without `export.exit`, `factored` takes the exits that have factors.

    Args:
        stored: the family's config.json.
        exits: exit name -> position k.
    """
    options, asked = config.export, asked_exits(config)
    format, output = options.format, Path(options.output).absolute() if options.output else None
    usual = Path(config.run_dir).absolute() / "export"
    if format in FAMILY_FORMATS:
        return [Target(None, format, output or usual / format)]
    chosen = [name for name in exits if asked is None or name in asked]
    if asked is None and format == "factored":
        chosen = [name for name in chosen if factored_modules(stored, exits, name)]
    if output is not None and asked is not None and not isinstance(options.exit, list):
        return [Target(name, format, output) for name in chosen]
    return [Target(name, format, output / name if output else usual / f"{name}-{format}") for name in chosen]


def serve_target(config: RunConfig, stored: Mapping[str, Any], exits: Mapping[str, int]) -> Target:
    """The folder that `stage=serve` writes; arguments as in `export_targets`."""
    exit, output = config.serve.exit or default_exit(stored, exits), config.serve.output
    folder = Path(output) if output else Path(config.run_dir) / "serve" / exit
    return Target(exit, "merged", folder.absolute())


def origin(family: Path, target: Target) -> dict[str, str | None]:
    """What an export is made from and how; changes with the family's configuration, weights or tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in EXPORTED for path in family.glob(pattern)}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    found = {"family": str(family.absolute()), "exit": target.exit, "format": target.format}
    return {**found, "fingerprint": digest.hexdigest()[:12]}


def exported_from(folder: Path) -> dict[str, Any] | None:
    """What an exported folder says of itself: its origin, parameters and bytes; None where nothing was exported, and {}
    where that was cut short."""
    try:
        return json.loads((folder / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def is_export(family: Path, target: Target, asked_vllm: bool = False) -> bool:
    """Whether a folder holds the whole export of this family, its weights included.

    Args:
        asked_vllm: only one that vLLM was asked about counts.
    """
    stored = exported_from(target.folder) or {}
    if not set(TOLD) <= stored.keys() or (asked_vllm and stored["vllm"] is None):
        return False
    there = (target.folder / "config.json").is_file() and weight_bytes(target.folder) == stored["bytes"]
    return there and origin(family, target).items() <= stored.items()


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def held(folders: Sequence[Path]) -> Iterator[None]:
    """Holds these folders, which it makes, for this process alone; one that stays empty is removed.

    Raises:
        Refusal: another process holds one of them.
    """
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            # The folder itself is locked: a file for that would be uploaded with it.
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            stack.callback(_remove_empty, folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refusal(str(folder), "another process writes it", "wait for it, or another folder") from None
            except OSError:
                pass  # Some network file systems have no locks.
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def clear(folder: Path) -> None:
    """Deletes what a folder holds but its mark; it stays, and so does its lock."""
    for each in folder.iterdir():
        if each.name == MARK:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def require_own(key: str, folder: Path) -> None:
    """Refuse a folder that holds what no export wrote."""
    if folder.is_dir() and any(folder.iterdir()) and exported_from(folder) is None:
        raise Refusal(key, f"{folder} holds files that no export wrote", "another folder")
