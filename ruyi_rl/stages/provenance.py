"""Where a family comes from: its run, the stages that made it, its base. Names and hashes; no paths and no secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ruyi_rl.run_folder import Manifest, StageFolder
from ruyi_rl.stages.lineage import lineage, read_summary

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": None}
"""What decides a draw -> TRL's default, where transformers' own may be another: its top_k is 50."""


@dataclass(frozen=True)
class StageRecord:
    """One stage, as its manifest tells it."""

    name: str
    data: str | None
    """`data.name`, of the stages that read rows."""
    config_hash: str
    seed: int
    ranks: int
    finished: str | None
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Base:
    """The model that the family was grown on."""

    name: str | None
    """Hub id, or the last part of a folder's path; None: random weights, or not known."""
    on_hub: bool = False
    license: str | None = None
    """As its model card names it, where that is at hand."""


@dataclass(frozen=True)
class Provenance:
    """Where a family comes from."""

    run: str
    stages: list[StageRecord]
    """In order; empty for a folder that no stage wrote."""
    base: Base
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries, at the last stage."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """What the last reinforcement learning drew its completions with; empty: there was none."""


def provenance(family: Path) -> Provenance:
    """That of the family in a folder, as far as the manifests before it tell it."""
    folders, _ = lineage(family)
    found = [(folder, manifest) for folder in folders if (manifest := StageFolder(folder).manifest()) is not None]
    manifests = [manifest for _, manifest in found]
    return Provenance(
        run=run_name(family),
        stages=[_record(manifest) for manifest in manifests],
        base=base_model(manifests, read_summary(folders[0]).get("base_on_hub")),
        versions=manifests[-1].versions if manifests else {},
        sampling=trained_sampling(manifests),
    )


def run_name(family: Path) -> str:
    """`name` of the run that a stage's folder belongs to, or the folder's own."""
    file = family / "config.yaml"
    stored = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return str(stored["name"]) if isinstance(stored, dict) and stored.get("name") else family.absolute().name


def trained_sampling(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Generation values of the last `grpo`."""
    for manifest in reversed(manifests):
        if manifest.stage == "grpo":
            asked = {key: manifest.decided_by.get(f"grpo.trainer.{key}") for key in SAMPLING}
            values = {key: SAMPLING[key] if value is None else value for key, value in asked.items()}
            return {key: value for key, value in values.items() if value is not None}
    return {}


def base_model(manifests: Sequence[Manifest], on_hub: bool | None = None) -> Base:
    """The base that the first stage was given.

    Args:
        on_hub: whether that stage read it from the hub; None: not known, and so only where the hub's cache holds it. A
            folder that is not there from here may look like an id of the hub.
    """
    named = manifests[0].decided_by.get("model.base") if manifests else None
    if not named:
        return Base(None)
    folder = Path(named).expanduser()
    if folder.is_dir() and not on_hub:
        return Base(folder.absolute().name, license=_license(folder / "README.md"))
    try:
        validate_repo_id(named)
    except HFValidationError:
        return Base(folder.name)
    if not (isinstance(try_to_load_from_cache(named, "config.json"), str) if on_hub is None else on_hub):
        return Base(folder.name)
    cached = try_to_load_from_cache(named, "README.md")
    return Base(named, on_hub=True, license=_license(Path(cached)) if isinstance(cached, str) else None)


def _license(card: Path) -> str | None:
    if not card.is_file():
        return None
    try:
        found = (metadata_load(card) or {}).get("license")
    except (ValueError, yaml.YAMLError):  # a card that others have written
        return None
    return found if isinstance(found, str) else None


def _record(manifest: Manifest) -> StageRecord:
    return StageRecord(
        name=manifest.stage,
        data=manifest.decided_by.get("data.name") if manifest.stage not in ("init", "expand") else None,
        config_hash=manifest.config_hash,
        seed=manifest.seed,
        ranks=manifest.world_size,
        finished=manifest.finished,
    )
