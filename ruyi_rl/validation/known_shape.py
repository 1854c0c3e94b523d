"""The shape of the family that a configuration makes, without its weights. Importing this module imports no torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.family.shape import FamilyShape, family_shape
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation.model import BACKBONES, FAMILIES, family_exits, local_folder, read_model_config
from ruyi_rl.validation.trainer_fields import class_fields

BYTES = 267
"""Words of the embedded family's tokenizer (`ruyi_rl.data.tokenizer`)."""


def known_shape(config: RunConfig) -> FamilyShape:
    """The family that the stages begin with; what `expand` would add is not in it (see `expanded`).

    Of a model on the hub, config.json alone is fetched.

    Raises:
        Refusal: it cannot be had.
    """
    model = config.model
    if config.start_from is not None:
        stored = read_model_config("start_from", Path(config.start_from))
    elif model.base is None:
        path, name = BACKBONES[model.architecture]
        defaults = {key: field.default for key, field in class_fields(path, name).items()}
        stored = defaults | {"vocab_size": BYTES, "model_type": model.architecture} | model.scratch
    elif folder := local_folder(model.base):
        stored = read_model_config("model.base", folder)
    else:
        stored = _hub_config(model.base)
    if stored["model_type"] in FAMILIES:
        return family_shape(stored, family_exits(stored))
    exits = dict(sorted(model.exits.items(), key=lambda item: item[1])) or {"exit": stored["num_hidden_layers"] - 1}
    return family_shape(stored, exits, shared_heads=model.shared_heads)


def expanded(shape: FamilyShape, exit: str | None, blocks: int) -> FamilyShape:
    """The shape after `stage=expand`; `exit` None: the shallowest."""
    name = exit or next(iter(shape.exits))
    return replace(shape, blocks={**shape.blocks, name: shape.blocks.get(name, 0) + blocks})


def _hub_config(base: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    try:
        return json.loads(Path(hf_hub_download(base, "config.json")).read_text())
    except Exception as error:  # noqa: BLE001  of the network, the hub, a gate: whatever it is, there is no shape
        told = " ".join(str(error).split())[:200]
        raise Refusal(
            "model.base", f"config.json of {base} cannot be had: {told}", "a folder that holds its config.json will do"
        ) from None
