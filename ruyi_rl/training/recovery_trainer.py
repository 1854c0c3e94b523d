"""Recovery: a short tuning of a compressed exit's factors, with the uncompressed branch as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from trl import SFTTrainer

from ruyi_rl.family.truncation import Factors
from ruyi_rl.training.distillation import Divergence
from ruyi_rl.training.family_trainer import FamilyTrainer
from ruyi_rl.training.taught_branch import TaughtBranch


class RecoveryTrainer(FamilyTrainer, SFTTrainer):
    """Minimises the mean of KL(teacher ‖ student) over the tokens that SFT would count.

    Takes what SFTTrainer takes, with a `TaughtBranch` as the model, and:

    Args:
        exit: name of the exit, for the metrics.
        save: called by rank 0 with a folder and the trained factors, to save the family there.

    Metrics: `<exit>/loss`, the divergence per token in nats; `<exit>/agreement`, the share of tokens whose most likely
    successor is the teacher's.
    """

    def __init__(
        self,
        *args,
        model: TaughtBranch,
        exit: str,
        save: Callable[[Path, Mapping[str, Factors]], None],
        **kwargs,
    ):
        self.exit, self.save = exit, save
        super().__init__(*args, model=model, **kwargs)
        model.place(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("recovery holds no logits to return: leave compute_metrics unset")
        found = model(**inputs)
        # Tokens of every rank and of the whole accumulation window, as for joint SFT.
        tokens = found.kl.numel() if num_items_in_batch is None else num_items_in_batch
        loss = found.kl.sum() / torch.as_tensor(tokens, device=found.kl.device).clamp(min=1)
        self.saw_micro_batch(inputs, {self.exit: loss})
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP and ZeRO average what is to be a sum over ranks
        self._log_divergence(found, inputs)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds the student alone; everything else gets the family, by `save`."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.is_world_process_zero():
            self.save(Path(output_dir or self.args.output_dir), self.model.factors())

    @torch.no_grad()
    def _log_divergence(self, found: Divergence, inputs) -> None:
        mode = "train" if self.model.training else "eval"
        seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
        columns = [found.kl.sum(), found.agrees.sum(), torch.tensor(found.kl.numel()), seen]
        columns = torch.stack([column.to(found.kl.device, torch.float64) for column in columns])
        kl, agrees, tokens, seen = self.accelerator.reduce(columns, reduction="sum").tolist()
        self._metrics[mode][f"{self.exit}/loss"].append(kl / max(tokens, 1))
        self._metrics[mode][f"{self.exit}/agreement"].append(agrees / max(tokens, 1))
        if mode == "train":
            self.state.num_input_tokens_seen += int(seen)  # in the state, so that a resumed run goes on counting
        self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
