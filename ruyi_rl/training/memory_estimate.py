"""What a rank will hold at most while it trains, and while it generates. Importing this module imports no torch.

An estimate: the terms of `memory.py` hold to the byte, activations to some ten percent, and what an allocator wastes is
assumed. docs/zero.md holds it against measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ruyi_rl.family.shape import FamilyShape
from ruyi_rl.training.activation_memory import TokenLoad, activation_bytes, head_bytes
from ruyi_rl.training.memory import FLOAT32, TrainingState, standing_gradients, training_state
from ruyi_rl.training.options import ZERO_STAGES

LIVE_PARAMETERS = 10**9
"""Gathered weights that a ZeRO-3 engine lets live at once (DeepSpeed's `stage3_max_live_parameters`)."""
CONTEXT = 2 * 10**9
"""Bytes of a GPU that its context, NCCL's buffers and fragmentation are assumed to take."""
PROCESS = 10**9
"""Bytes that the libraries themselves are assumed to take in a process of a CPU run."""


@dataclass(frozen=True)
class Engines:
    """What colocated engines take on a rank's device."""

    awake: int = 0
    """Bytes while completions are made: weights and caches."""
    asleep: int = 0
    """Bytes while the trainer works."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank on its device; with offloading, of what stays there."""

    state: TrainingState
    activations: int
    head: int
    """A tile of logits, and float32 gradients of one head."""
    copies: int
    """Weights in the dtype of the products: gathered ones (ZeRO-3), or autocast's (16 bits without DeepSpeed)."""
    step: int
    """Float32 gradients that a ZeRO engine's step reads, when the activations are gone."""
    engines: Engines
    overhead: int
    """Of the device or process itself."""
    standing: int = 0
    """Of the gradients' bytes those that are there all the time."""
    offloaded: bool = False
    """Whether `state` lies in the CPU's memory, not on the device."""

    @property
    def training(self) -> int:
        """While gradients are made, or applied, whichever takes more."""
        state = 0 if self.offloaded else self.state.total
        passing = self.activations + self.head + self.copies
        return state + max(passing, 0 if self.offloaded else self.step) + self.engines.asleep + self.overhead

    @property
    def generating(self) -> int:
        """While engines make completions: of the gradients only what stands."""
        state = 0 if self.offloaded else self.state.total - self.state.gradients + self.standing
        return state + self.engines.awake + self.overhead

    @property
    def peak(self) -> int:
        return max(self.training, self.generating if self.engines.awake else 0)


def memory_estimate(
    shape: FamilyShape,
    mode: str,
    ranks: int,
    parameters: tuple[int, int],
    load: TokenLoad,
    bits16: bool,
    checkpointing: bool,
    device: str,
    engines: Engines = Engines(),
    reference: bool = False,
) -> MemoryEstimate:
    """The estimate of a training stage.

    Args:
        mode: `off` or a key of `ZERO_STAGES`.
        ranks: over which ZeRO shards.
        parameters: numbers of those that take gradients, and of all.
        load: tokens of the largest pass.
        bits16: whether the trainer computes in bf16 or fp16.
        checkpointing: of gradients.
        device: `cuda` or `cpu`.
        reference: whether the trained weights are held a second time, frozen, for a KL term.
    """
    item = 2 if bits16 else FLOAT32
    stream = item if mode != "off" else FLOAT32  # without DeepSpeed the weights are float32, and so the stream
    trained, whole = parameters
    frozen = whole - trained + (trained if reference else 0)
    copies = 0
    if ZERO_STAGES.get(mode) == 3:
        copies = item * min(whole, LIVE_PARAMETERS)
    elif item < stream:
        copies = item * trained
    return MemoryEstimate(
        state=training_state(mode, ranks, trained, frozen, bits16),
        activations=activation_bytes(shape, load, stream, item, checkpointing),
        head=head_bytes(shape, load, item, device),
        copies=copies,
        step=0 if mode == "off" else FLOAT32 * -(-trained // ranks),
        engines=engines,
        standing=standing_gradients(mode, ranks, trained, bits16),
        overhead=CONTEXT if device == "cuda" else PROCESS,
        offloaded=mode == "zero3_offload",
    )


def rows_load(exits: Mapping[str, int], tokens: int) -> TokenLoad:
    """Of SFT: every token of a micro-batch is every exit's.

    Args:
        exits: exit name -> position k of the trained exits.
        tokens: of a micro-batch at most.
    """
    return TokenLoad(tokens, dict.fromkeys(exits, 0))


def pack_load(exits: Mapping[str, int], prompt_tokens: int, completion_tokens: int, budget: int | None) -> TokenLoad:
    """Of GRPO: prompts once for all exits, completions each at its own; a larger micro-batch goes in several packs.

    Args:
        exits: exit name -> position k of the trained exits.
        prompt_tokens: of a micro-batch's prompts at most, each counted once.
        completion_tokens: of all its completions at most.
        budget: tokens of a pack at most; None: a micro-batch is one pack.
    """
    whole = prompt_tokens + completion_tokens
    share = 1.0 if budget is None or whole <= budget else budget / whole
    own = round(share * completion_tokens / len(exits))
    return TokenLoad(round(share * prompt_tokens), dict.fromkeys(exits, own))


def padded_load(exits: Mapping[str, int], rows: int, length: int) -> TokenLoad:
    """Of GRPO in padded rows (`grpo.packed=false`): each exit has as many."""
    return TokenLoad(0, dict.fromkeys(exits, rows * length // len(exits)))


def vllm_engines(
    shape: FamilyShape,
    exits: Mapping[str, int],
    item: int,
    utilization: float,
    device_bytes: int | None,
    sleep: bool,
    tensor_parallel: int,
) -> Engines:
    """What vLLM's engines in the training processes take of a GPU.

    Args:
        exits: exit name -> position k of the exits that they serve.
        item: bytes of a weight.
        utilization: share of the GPU for all engines together.
        device_bytes: memory of the GPU; None: not known, then the weights alone count.
        sleep: whether the engines give their memory back while the trainer works.
        tensor_parallel: ranks that share one engine.
    """
    # Engines of one process share the trunk's layers, embedding and all.
    weights = item * shape.trained(list(exits)) // tensor_parallel
    awake = weights if device_bytes is None else max(round(utilization * device_bytes), weights)
    return Engines(awake, 0 if sleep else awake)


def cache_bytes(
    shape: FamilyShape, exits: Mapping[str, int], rows: int, length: int, item: int, limit: int | None = None
) -> int:
    """Bytes of all exits' key-value caches for `rows` sequences of `length` tokens, at most `limit` for each exit."""
    sizes = [2 * shape.keys * item * shape.depth(exit) * rows * length for exit in exits]
    return sum(size if limit is None else min(size, limit) for size in sizes)
