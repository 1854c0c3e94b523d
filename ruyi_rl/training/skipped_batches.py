"""What is kept of an update that was not finite: each rank's micro-batches, to look at and to load again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ruyi_rl.run_folder import write_json
from ruyi_rl.training.run_state import flat_batches

FOLDER = "skipped"
"""Beside a training's checkpoints."""
KEPT = 6
"""Updates whose micro-batches stay on disk, the newest, of each rank."""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of the update that is under way."""

    inputs: Mapping[str, Any]
    """What the loss was computed from."""
    losses: Mapping[str, torch.Tensor]
    """Exit -> () its contribution to the update's loss on this rank; in the order that `exit_ids` are indices into."""


@dataclass(frozen=True)
class SkippedUpdate:
    """Why an update was skipped; the same on every rank."""

    step: int
    """Its number, as in metrics.jsonl."""
    in_a_row: int
    """Updates skipped up to this one without a finite one in between."""
    learning_rate: float
    losses: dict[str, list[int]]
    """Exit whose loss is not finite -> ranks on which."""
    parameters: list[str]
    """Whose gradients are not finite, as far as can be told; with a loss that is not, mostly all that it reaches."""

    def reason(self) -> str:
        """What was not finite."""
        if self.losses:
            exits = ", ".join(f"{name} (rank {listed(ranks)})" for name, ranks in self.losses.items())
            return f"the loss is not finite at exit {exits}"
        if self.parameters:
            more = f" and {len(self.parameters) - 3} more" if len(self.parameters) > 3 else ""
            return f"the loss is finite, but not the gradient of {', '.join(self.parameters[:3])}{more}"
        return "loss and gradients are finite, but not the gradients' norm"


def write_skipped(
    folder: Path,
    update: SkippedUpdate,
    batches: Sequence[MicroBatch],
    rank: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """Writes `step-N-rank-R.safetensors`, the tensors, and `.json`, why and the texts; returns the latter's path.

    The tensors are named `batch.<number of the micro-batch>.<name>`; `batches_of` gives them back as micro-batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{update.step}-rank-{rank}.json"
    tensors = flat_batches([batch.inputs for batch in batches], "batch").tensors
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, path.with_suffix(".safetensors"))
    found = {
        **asdict(update),
        "reason": update.reason(),
        "rank": rank,
        "micro_batches": [
            {
                "losses": {name: _json_number(loss.item()) for name, loss in batch.losses.items()},
                "rows": _readable_rows(batch, tokenizer),
            }
            for batch in batches
        ],
    }
    write_json(path, found)
    written = sorted(folder.glob(f"step-*-rank-{rank}.json"), key=lambda file: int(file.name.split("-")[1]))
    for old in written[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def _readable_rows(batch: MicroBatch, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Of GRPO prompt, completion, exit and advantage; of other trainings the text and how many tokens count."""
    inputs, exits = batch.inputs, list(batch.losses)
    if "completion_ids" not in inputs:
        ids = inputs["input_ids"]
        masks = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        counted = (inputs["labels"][:, 1:] != -100).sum(1).tolist()
        texts = (tokenizer.decode(row[mask]) for row, mask in zip(ids, masks))
        return [{"text": text, "counted_tokens": count} for text, count in zip(texts, counted, strict=True)]
    columns = [inputs[f"{part}_{kind}"] for part in ("prompt", "completion") for kind in ("ids", "mask")]
    return [
        {
            "exit": exits[exit],
            "prompt": tokenizer.decode(prompt[prompt_mask.bool()]),
            "completion": tokenizer.decode(completion[completion_mask.bool()]),
            "advantage": _json_number(advantage),
        }
        for exit, advantage, prompt, prompt_mask, completion, completion_mask in zip(
            inputs["exit_ids"].tolist(), inputs["advantages"].tolist(), *columns, strict=True
        )
    ]


def _json_number(value: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def listed(values: Sequence[int]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, values))
