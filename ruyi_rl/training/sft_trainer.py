"""Joint multi-branch SFT on TRL's SFTTrainer: one pass over the trunk, one cross-entropy per exit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from trl import SFTTrainer

from ruyi_rl.family.output import FamilyOutput
from ruyi_rl.training.family_trainer import FamilyTrainer, freeze_others
from ruyi_rl.training.packing import pack_sequences
from ruyi_rl.training.rows import deepest_first
from ruyi_rl.training.schedules import LossWeights


class FamilySFTTrainer(FamilyTrainer, SFTTrainer):
    """`L = Σ λ_k(t)·CE_k` over the chosen exits (Ruyi2 report, joint training).

    Takes what SFTTrainer takes, with a `Family` as the model, and:

    Args:
        exits: names of the exits to train. Parameters that none of them runs through are frozen.
        train_only: `expansion`: also freeze all but the exits' expansion blocks, norms and heads.
        loss_weights: λ per exit over the run; None: 1 each.
        packed: whether a batch is computed without its padding, as one pack, or as it is padded. In a pack, rows that
            hold several sequences (`packing`, `padding_free`) attend exactly whatever the attention implementation.

    Metrics: `<exit>/loss`, `<exit>/mean_token_accuracy` and `<exit>/loss_weight` besides TRL's own, which average the
    exits.
    """

    def __init__(
        self,
        *args,
        exits: Sequence[str] | None = None,
        train_only: str | None = None,
        loss_weights: LossWeights | None = None,
        packed: bool = True,
        model,
        **kwargs,
    ):
        self.exits, self.train_only = freeze_others(model, exits, train_only), train_only
        ones = dict.fromkeys(self.exits, 1.0)
        self.loss_weights = loss_weights or LossWeights(ones, ones)
        self.packed = packed
        super().__init__(*args, model=model, **kwargs)
        if self.args.loss_type != "nll":
            raise ValueError(f"sft.trainer.loss_type: joint SFT has the nll loss, not {self.args.loss_type!r}")

    def progress(self) -> float:
        """Share of the optimiser steps done, which λ(t) follows."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("joint SFT holds no logits to return: leave compute_metrics unset")
        mode = "train" if self.model.training else "eval"
        outputs, mask = self._forward(model, inputs)
        # Tokens of every rank and of the whole accumulation window, so that neither changes the objective.
        tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        tokens = torch.as_tensor(tokens, device=mask.device).clamp(min=1)
        weights = self.loss_weights.at(self.progress())
        losses = {name: -outputs.log_probs[name].sum() / tokens for name in self.exits}
        self.saw_micro_batch(inputs, losses)
        loss = sum(weights[name] * losses[name] for name in self.exits)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP and ZeRO average what is to be a sum over ranks
        self._log_exits(mode, outputs, mask, inputs, weights)
        return loss

    def _forward(self, model, inputs) -> tuple[FamilyOutput, torch.Tensor]:
        """Scores of every exit, whose sums count what a boolean mask, which is returned too, counts."""
        if not self.packed:
            outputs = model(**{**inputs, "use_cache": False}, exits=self.exits, output="log_probs")
            return outputs, inputs["labels"][:, 1:] != -100
        input_ids = inputs["input_ids"]
        positions = inputs.get("position_ids")
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        tokens = inputs.get("attention_mask", torch.ones_like(input_ids))
        deepest = deepest_first(self.exits, self.accelerator.unwrap_model(model).exits)
        packed = pack_sequences(input_ids, tokens, inputs["labels"], positions, deepest)
        outputs = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            pack=packed.pack,
            use_cache=False,
            output="log_probs",
        )
        return outputs, torch.ones_like(packed.places[deepest[0]], dtype=torch.bool)

    @torch.no_grad()
    def _log_exits(self, mode, outputs, mask, inputs, weights) -> None:
        """One reduction for all exits and metrics."""
        columns = [mask.sum().float()]
        for name in self.exits:
            for value in (-outputs.log_probs[name], outputs.is_top1[name], outputs.entropy[name]):
                columns.append(value.float().sum())
        columns.append(torch.tensor(float(_token_count(inputs)), device=mask.device))
        tokens, *sums, seen = self.accelerator.reduce(torch.stack(columns), reduction="sum").tolist()
        metrics = self._metrics[mode]
        totals = [0.0, 0.0]
        for index, name in enumerate(self.exits):
            loss, correct, entropy = (value / max(tokens, 1) for value in sums[3 * index : 3 * index + 3])
            metrics[f"{name}/loss"].append(loss)
            metrics[f"{name}/mean_token_accuracy"].append(correct)
            metrics[f"{name}/loss_weight"].append(weights[name])
            totals = [totals[0] + entropy, totals[1] + correct]
        metrics["entropy"].append(totals[0] / len(self.exits))
        metrics["mean_token_accuracy"].append(totals[1] / len(self.exits))
        if mode == "train":
            self.state.num_input_tokens_seen += int(seen)  # in the state, so that a resumed run goes on counting
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]


def _token_count(inputs) -> int:
    """Tokens of a batch without padding; a padding-free batch has no attention mask and no padding."""
    if "attention_mask" in inputs:
        return int(inputs["attention_mask"].sum())
    return inputs["input_ids"].numel()
