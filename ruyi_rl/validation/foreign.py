"""What of a model that others have made is never read: weights that are pickles, and code. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.refusal import Refusal

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_foreign(key: str, folder: Path, stored: Mapping[str, Any], stock: bool) -> None:
    """Refuse a model folder whose weights are pickles, or that needs code of its own.

    Args:
        key: config key of the folder, for the message.
        stored: its config.json.
        stock: whether it is to be a stock Qwen. A family's `auto_map` is passed over: its class is known here.

    Raises:
        Refusal: naming the file at fault.
    """
    if stock:
        refuse_code(key, str(folder), "model", stored.get("auto_map"))
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        refuse_code(key, str(folder), "tokenizer", tokenizer_code(read_object(key, tokenizer)))
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise Refusal(
            key,
            f"{folder} holds its weights as pickles alone ({', '.join(pickles[:3])}), which may run code when read",
            "safetensors: where you trust them, from_pretrained and save_pretrained of transformers write these",
        )


def refuse_code(key: str, model: str, part: str, auto_map: Any) -> None:
    """Refuse a model or tokenizer whose configuration says that code beside it is needed.

    Args:
        part: `model` or `tokenizer`.
        auto_map: class -> where its code is, as the configuration has it; empty or None: no code.
    """
    if not auto_map:
        return
    named = auto_map.values() if isinstance(auto_map, Mapping) else auto_map
    files = sorted({f"{name.rpartition('.')[0]}.py" for name in _texts(named)})
    raise Refusal(
        key,
        f"the {part} of {model} needs code of its own ({', '.join(files)}), and no code of a model's is ever run",
        f"a stock one: without auto_map in its configuration, if the {part} is transformers' own all the same",
    )


def tokenizer_code(stored: Mapping[str, Any]) -> Any:
    """Where the code of a tokenizer's slow or fast class is, by its `tokenizer_config.json`; None: it needs none."""
    auto_map = stored.get("auto_map")
    return auto_map.get("AutoTokenizer") if isinstance(auto_map, Mapping) else auto_map


def read_object(key: str, file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        Refusal: it holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refusal(key, f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(key, f"{file} holds no JSON object")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in value or () for text in _texts(item)]
