"""Bytes of training state that a rank holds, by arithmetic. Importing this module imports no torch.

The terms are those of ZeRO (Rajbhandari et al. 2020, section 3 and figure 1): weights and gradients of w bytes a
parameter and 12 bytes of float32 weights and AdamW moments, of which the stages divide 12, w + 12 and 2 w + 12 by the
number of ranks. docs/zero.md holds them against what the engines hold. Activations, gathered layers and buckets come on
top, and on a GPU what the rollout engines take.
"""

from __future__ import annotations

from dataclasses import dataclass

from ruyi_rl.training.options import ZERO_STAGES

FLOAT32 = 4


@dataclass(frozen=True)
class TrainingState:
    """Bytes of one rank while gradients are accumulated; with offloading all of them are in the CPU's memory."""

    weights: int
    """What the forward pass reads."""
    gradients: int
    masters: int
    """A ZeRO engine's own float32 weights, which it holds beside float32 weights too."""
    moments: int
    """AdamW's two, in float32."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.masters + self.moments


def training_state(mode: str, ranks: int, trained: int, frozen: int, bits16: bool) -> TrainingState:
    """What a rank holds under a ZeRO stage with AdamW.

    Args:
        mode: `off` or a key of `ZERO_STAGES`.
        ranks: over which ZeRO shards.
        trained: number of parameters that take gradients.
        frozen: number of the others.
        bits16: whether the trainer computes in bf16 or fp16. Without DeepSpeed the weights are float32 all the same.
    """
    if mode == "off":
        # Several ranks' gradients are also in the buckets that are summed over the ranks.
        gradients = FLOAT32 * trained * (2 if ranks > 1 else 1)
        return TrainingState(FLOAT32 * (trained + frozen), gradients, 0, 2 * FLOAT32 * trained)
    stage, item = ZERO_STAGES[mode], 2 if bits16 else FLOAT32
    share = -(-trained // ranks)  # rounded up
    gradients = item * (trained if stage == 1 else share)
    if mode == "zero3_offload":
        gradients += FLOAT32 * share  # what the CPU's optimiser reads
    return TrainingState(
        weights=item * (share - (-frozen // ranks)) if stage == 3 else item * (trained + frozen),
        gradients=gradients,
        masters=FLOAT32 * share,
        moments=2 * FLOAT32 * share,
    )


def standing_gradients(mode: str, ranks: int, trained: int, bits16: bool) -> int:
    """Bytes of gradients that a rank holds between its steps too; see `training_state`.

    ZeRO-3 keeps one flat buffer for its share of them (DeepSpeed's `grad_partitions_flat_buffer`), and without
    DeepSpeed the buckets that several ranks sum stay. All other gradients are set to none after a step.
    """
    if mode == "off":
        return FLOAT32 * trained if ranks > 1 else 0
    item = 2 if bits16 else FLOAT32
    return item * -(-trained // ranks) if ZERO_STAGES[mode] == 3 else 0
