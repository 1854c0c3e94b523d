"""A family's weights on their way to a worker: one branch, under its stock names, one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.weights import branch_sources, dense, tensors_of

SHARD_BYTES = 4 * 2**30
"""Size from which a weight file is closed and the next begun: what rank 0 holds in memory beside the family."""


@dataclass(frozen=True)
class BranchTensor:
    """One tensor of a branch."""

    name: str
    """In the stock model."""
    sources: tuple[str, ...]
    """In the family: one, or the two factors whose product it is."""
    shape: tuple[int, ...]


def branch_layout(config: FamilyConfig, exit: str, private: bool = False) -> list[BranchTensor]:
    """The tensors of an exit's branch, layer by layer as an engine likes to load them; tied heads are left out.

    Args:
        private: only what the branch shares with no deeper exit: its own layers, its norm, and a head of its own.
    """
    stock_config = config.branch_config(exit)
    with torch.device("meta"):
        # Not `from_config`: where ZeRO-3 is configured it shards the model and gathers what has no data.
        stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(stock_config)](stock_config)
    shapes = {name: tuple(parameter.shape) for name, parameter in stock.named_parameters()}
    sources = branch_sources(config, exit, shapes)
    own = tuple(f"model.layers.{number}." for number in range(config.exits[exit], config.depths[exit]))

    def kept(name: str) -> bool:
        mine = name.startswith(own) or name == "model.norm.weight"
        return not private or mine or (name == "lm_head.weight" and not config.shared_heads)

    return [
        BranchTensor(name, tensors_of(config, sources[name]), shape) for name, shape in shapes.items() if kept(name)
    ]


def branch_tensors(family: Family, layout: list[BranchTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(stock name, whole tensor) for each tensor of the layout, in its order; detached, in the family's dtype.

    Factors are merged. Under ZeRO-3 each tensor is gathered when its turn comes and given up after it, so that no rank
    ever holds more than one of the family for this; every rank has to run the iterator to its end.
    """
    parameters = dict(family.named_parameters())
    for tensor in layout:
        parts = [parameters[name] for name in tensor.sources]
        with whole(parts):
            data = dense([part.detach() for part in parts])
            # A gathered tensor is freed when its turn is over, but the engine may keep it until its layer is complete.
            yield tensor.name, data.clone() if len(parts) == 1 and hasattr(parts[0], "ds_id") else data


@contextmanager
def whole(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """The parameters unsharded, where ZeRO-3 shards them."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(parameters):
        yield


def write_branch_config(
    config: FamilyConfig, exit: str, folder: Path, dtype: torch.dtype, end_token_ids: tuple[int, ...] = ()
) -> None:
    """Writes the stock model's `config.json` and `generation_config.json`, which is all that an engine without weights
    needs."""
    stock = config.branch_config(exit)
    stock.architectures = [{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[stock.model_type]]
    stock.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    stock.save_pretrained(folder)
    GenerationConfig(eos_token_id=list(end_token_ids) or None, pad_token_id=config.pad_token_id).save_pretrained(folder)


def write_branch_weights(
    family: Family,
    layout: list[BranchTensor],
    folder: Path,
    dtype: torch.dtype,
    write: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a branch's weights as safetensors, with an index where they take several files.

    The caller sees to it that nobody reads meanwhile; a kill in between leaves a folder that the next call mends.

    Args:
        dtype: to write in.
        write: False on the ranks that only take part in gathering.
        shard_bytes: most bytes of one file, but for a single larger tensor.
    """
    temporary = folder / ".next"
    if write:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    held = files = 0

    def close_shard() -> None:
        nonlocal shard, held, files
        files += 1
        file = f"model-{files:05d}.safetensors"
        save_file(shard, temporary / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))
        shard, held = {}, 0

    for name, tensor in branch_tensors(family, layout):
        if not write:
            continue
        tensor = tensor.to("cpu", dtype).contiguous()
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > shard_bytes:
            close_shard()
        shard[name] = tensor
        held += size
    if not write:
        return
    if shard:
        close_shard()
    (temporary / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for stale in folder.glob("model-*.safetensors"):
        stale.unlink()
    for file in sorted(temporary.iterdir()):  # the index sorts after the shards
        file.replace(folder / file.name)
    temporary.rmdir()
