"""The families that led to a family: the folders of its stages, found by their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.family.stored import StoredFamily, same_function, stored_family, weight_files
from ruyi_rl.run_folder import StageFolder, fingerprint


@dataclass(frozen=True)
class Ancestor:
    """A folder that holds a family, and what its stage said of it."""

    name: str
    """The stage; of another run, with that run's name before it."""
    family: StoredFamily
    summary: Mapping[str, Any]
    unchanged: frozenset[str]
    """Exits that compute the same as in the family before."""


def ancestors(folder: Path) -> tuple[list[Ancestor], str | None]:
    """The families that led to the one in `folder`, itself last, and why older ones are left out, if any are.

    Raises:
        ValueError: `folder` holds no family as safetensors.
    """
    folders, stopped = lineage(folder)
    found: list[Ancestor] = []
    for path in folders:
        family = stored_family(path)
        same = same_function(found[-1].family, family) if found else set()
        found.append(Ancestor(_name(path, folder), family, read_summary(path), frozenset(same)))
    return found, stopped


def lineage(folder: Path) -> tuple[list[Path], str | None]:
    """The folders, oldest first, and why older ones are left out, if any are.

    Each manifest names the family that its stage started from. One that has been made anew since then is not it.
    """
    folders = [folder]
    while (manifest := StageFolder(folders[0]).manifest()) is not None and manifest.input is not None:
        named, seen = Path(manifest.input), {path.resolve() for path in folders}
        # Of a run that has been moved or copied, the stages still stand side by side.
        there = [path for path in (folders[0].parent / named.name, named) if weight_files(path)]
        right = [path for path in there if fingerprint(path) == manifest.input_hash and path.resolve() not in seen]
        if not right:
            what = f"has been made anew since {manifest.stage} started from it" if there else "holds no family any more"
            return folders, f"{named} {what}"
        folders.insert(0, right[0])
    return folders, None


def _name(folder: Path, last: Path) -> str:
    manifest, parent = StageFolder(folder).manifest(), folder.resolve().parent
    name = manifest.stage if manifest else folder.name
    return name if parent == last.resolve().parent else f"{parent.name}/{name}"


def read_summary(folder: Path) -> Mapping[str, Any]:
    try:
        return StageFolder(folder).summary()
    except (FileNotFoundError, ValueError):
        return {}
