"""Calibration: which inputs the matrices that are compressed really see, as Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ruyi_rl.family.config import FamilyConfig
from ruyi_rl.family.weights import private_modules

BLOCK_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linear layers of a decoder block."""
TOKEN_CHUNK = 4096
"""Tokens whose inputs are held in float64 at a time."""


@dataclass(frozen=True)
class Calibration:
    """What the inputs of some linear layers were."""

    grams: dict[str, torch.Tensor]
    """Module name -> XXᵀ (n, n) float64 of its inputs X (n, tokens); one tensor for all modules with the same input."""
    tokens: int
    """How many inputs each saw."""


def compressed_modules(config: FamilyConfig, exit: str) -> dict[str, str]:
    """The linear layers that compressing an exit factors: name in the stock model of its branch -> in the family.

    Those of its expansion blocks, and its head unless all exits share it.
    """
    found = {}
    for stock, own in private_modules(config, exit).items():
        if stock.startswith("model.layers."):
            found.update({stock + linear: own + linear for linear in BLOCK_LINEARS})
        elif stock == "lm_head.":
            found["lm_head"] = own.removesuffix(".")
    return found


def module_group(stock_name: str) -> str:
    """The budget's group of a linear layer: `q_proj`, …, `down_proj` or `lm_head`."""
    return stock_name.rpartition(".")[2]


@torch.no_grad()
def collect_grams(
    model: PreTrainedModel,
    names: Sequence[str],
    batches: Iterable[Mapping[str, torch.Tensor]],
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Run a stock Qwen2ForCausalLM or Qwen3ForCausalLM on the batches and sum up what its linear layers are given.

    The sums do not depend on how rows are ordered, batched or padded, up to rounding. No logits are computed.

    Args:
        model: in any mode, which it keeps.
        names: its linear layers; `lm_head` may be one.
        batches: dicts with `input_ids` (batch, length) and where rows are padded `attention_mask`, 0 for padding.
        progress: gets a line of text after each batch.

    Raises:
        ValueError: no batch, no token, or NaN or infinity in an input.
    """
    sums, modules = _Sums(), {name: model.get_submodule(name) for name in names}
    heads = [name for name, module in modules.items() if module is model.get_output_embeddings()]
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: sums.add(name, inputs[0]))
        for name, module in modules.items()
        if name not in heads
    ]
    training, tokens, number = model.training, 0, -1
    model.eval()
    try:
        for number, batch in enumerate(batches):
            ids = batch["input_ids"].to(model.device)
            if not ids.numel():
                continue
            mask = batch.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask.to(model.device)
            sums.begin(number, mask.bool())
            hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for name in heads:
                sums.add(name, hidden)
            tokens += int(mask.bool().sum())
            if progress is not None:
                progress(f"calibration: batch {number + 1}, {tokens} tokens")
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError(f"no calibration: {number + 1} batches with 0 tokens")
    return Calibration({name: sums.of(name) for name in names}, tokens)


class _Sums:
    """XXᵀ of the modules' inputs, one sum for those that are given the same tensor one after the other."""

    def __init__(self):
        self.totals: dict[str, torch.Tensor] = {}
        self.owners: dict[str, str] = {}

    def begin(self, batch: int, mask: torch.Tensor) -> None:
        self.batch, self.mask, self.last, self.owner = batch, mask, None, ""

    def add(self, name: str, inputs: torch.Tensor) -> None:
        if inputs is self.last:
            self.owners[name] = self.owner
            return
        self.last, self.owner, self.owners[name] = inputs, name, name
        total = self.totals.get(name)
        if total is None:
            size = inputs.shape[-1]
            total = self.totals[name] = torch.zeros(size, size, dtype=torch.float64, device=inputs.device)
        rows = inputs[self.mask]
        if not rows.isfinite().all():
            raise ValueError(f"calibration batch {self.batch}: the inputs of {name} hold NaN or infinity")
        for part in rows.split(TOKEN_CHUNK):
            wide = part.to(torch.float64)
            total.addmm_(wide.T, wide)

    def of(self, name: str) -> torch.Tensor:
        return self.totals[self.owners[name]]
