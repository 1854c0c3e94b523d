"""Writing the model card of an exported folder from what the folder, the family and its run say."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.family.stored import stored_family
from ruyi_rl.redaction import Redaction
from ruyi_rl.run_folder import write_text
from ruyi_rl.stages.card_scores import score_tables
from ruyi_rl.stages.exported import Target, exported_from
from ruyi_rl.stages.model_card import Card, ExitSize, render
from ruyi_rl.stages.parity import Parity
from ruyi_rl.stages.provenance import SAMPLING, provenance
from ruyi_rl.stages.published_names import code_files
from ruyi_rl.validation.serving import has_chat_template

BACKBONES = {"ruyi_qwen2": "Qwen2", "ruyi_qwen3": "Qwen3", "ee_qwen3": "Qwen3"}


def write_card(config: RunConfig, family: Path, target: Target, repository: str | None) -> bool:
    """Writes README.md of an exported folder; returns whether it says anything new.

    Args:
        family: what the folder was exported from.
        repository: hub id that the folder goes to.
    """
    text = Redaction.of(asdict(config)).value(render(card_of(config, family, target, repository)))
    file = target.folder / "README.md"
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    write_text(file, text)
    return True


def card_of(config: RunConfig, family: Path, target: Target, repository: str | None) -> Card:
    """All that the card of an exported folder tells; arguments as in `write_card`."""
    mark = exported_from(target.folder) or {}
    stored = stored_family(family)
    found = provenance(family)
    return Card(
        address=repository or target.folder.name,
        exit=target.exit,
        format=target.format,
        backbone=BACKBONES[stored.config.model_type],
        dtype=mark["dtype"],
        parameters=mark["parameters"],
        bytes=mark["bytes"],
        exits=[ExitSize(name, k, **asdict(stored.size(name))) for name, k in stored.config.exits.items()],
        provenance=found,
        parity=Parity(**{field.name: mark[field.name] for field in fields(Parity)}),
        scores=score_tables(family),
        chat=has_chat_template(target.folder),
        sampling=written_sampling(target.folder),
        license=config.export.license or found.base.license,
        code=missing_code(target.folder) if target.format == "ruyi" else (),
    )


def written_sampling(folder: Path) -> dict[str, float]:
    """The values by which a folder's generation config draws; empty where it does not."""
    stored = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return {key: stored[key] for key in SAMPLING if stored.get(key) is not None} if stored.get("do_sample") else {}


def missing_code(folder: Path) -> list[str]:
    """Files of the published code that a folder under the published names still needs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [name for name in code_files(config) if not (folder / name).is_file()]
