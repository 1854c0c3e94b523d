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
SHAPES = Path(__file__).parent / "base_shapes.json"
"""Of each base that a shipped `model` names, what its config.json on the hub says of its shape."""
SECONDS = 10
"""How long the hub may take."""


def known_shape(config: RunConfig, ask_hub: bool = True) -> FamilyShape:
    """The family that the stages begin with; what `expand` would add is not in it (see `expanded`).

    Args:
        ask_hub: fetch config.json, and it alone, of a model on the hub that nothing here tells of.

    Raises:
        Refusal: the shape cannot be had.
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
        stored = _hub_config(model.base, ask_hub)
    if stored["model_type"] in FAMILIES:
        return family_shape(stored, family_exits(stored))
    exits = dict(sorted(model.exits.items(), key=lambda item: item[1])) or {"exit": stored["num_hidden_layers"] - 1}
    return family_shape(stored, exits, shared_heads=model.shared_heads)


def expanded(shape: FamilyShape, exit: str | None, blocks: int) -> FamilyShape:
    """The shape after `stage=expand`; `exit` None: the shallowest."""
    name = exit or next(iter(shape.exits))
    return replace(shape, blocks={**shape.blocks, name: shape.blocks.get(name, 0) + blocks})


def _hub_config(base: str, ask_hub: bool) -> dict[str, Any]:
    """config.json of a model on the hub; of a shipped base what decides its shape."""
    shapes = json.loads(SHAPES.read_text())
    if base in shapes:
        return shapes[base]
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    cached = try_to_load_from_cache(base, "config.json")
    if isinstance(cached, str):
        return json.loads(Path(cached).read_text())
    try:
        if not ask_hub:
            raise FileNotFoundError("it is not in the cache")
        # Once: a download would be tried again and again, which takes half a minute where there is no network.
        url, headers = hf_hub_url(base, "config.json"), build_hf_headers()
        answer = get_session().get(url, headers=headers, timeout=SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
        return answer.json()
    except Exception as error:  # noqa: BLE001  of the network, the hub, a gate: whatever it is, there is no shape
        told = " ".join(str(error).split())[:200]
        raise Refusal(
            "model.base", f"config.json of {base} cannot be had: {told}", "a folder that holds its config.json will do"
        ) from None
