"""`model`, `expand` and `compress`: which family to build, and what DaE makes of an exit. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.data.options import DataOptions

EXPANSION_INITS = ("gaussian", "clone")
"""What `expand.init` may be."""
COMPRESSION_METHODS = ("svd", "whitened", "budgeted")
"""What `compress.method` may be."""


@dataclass
class ModelOptions:
    """The `model` group."""

    name: str = "tiny"
    """Short name; the default run name starts with it."""
    base: str | None = None
    """HF folder or hub id of a stock Qwen2/2.5/3 or of a family. None: weights from scratch, by `scratch`."""
    exits: dict[str, int] = field(default_factory=dict)
    """Exit name -> position k, the number of trunk layers below its branch. The last must be num_hidden_layers - 1.
    Ignored (and must be empty or equal) where `base` is a family already."""
    shared_heads: bool = False
    """One LM head for all exits instead of one each."""
    architecture: str = "qwen3"
    """`qwen3` or `qwen2`; only read when the weights are made from scratch."""
    scratch: dict[str, Any] = field(default_factory=dict)
    """Backbone config keys (hidden_size, num_hidden_layers, …) of weights made from scratch."""
    dtype: str = "float32"
    """Dtype the weights are saved in, which every later stage takes over: float32, bfloat16 or float16. While they are
    trained they are float32, or DeepSpeed keeps a float32 copy."""
    attn_implementation: str | None = None
    """transformers' attention: sdpa, eager, flash_attention_2 …; None: transformers' choice."""


@dataclass
class ExpandOptions:
    """The `expand` block, read by `stage=expand`."""

    exit: str | None = None
    """The exit that gets the new blocks; None: the shallowest."""
    blocks: int = 3
    """Decoder blocks that are appended to its branch."""
    init: str = "gaussian"
    """`gaussian`: all matrices are drawn by the run's seed; `clone`: they are the branch's last layer's. In both cases
    the two matrices that write to the residual stream are 0, so that the branch starts as the same function."""
    again: bool = False
    """Append to an exit that has new blocks already."""


@dataclass
class CompressOptions:
    """The `compress` block, read by `stage=compress`."""

    exit: str | None = None
    """The exit whose new blocks and head are compressed; None: the one that is expanded."""
    ratio: float = 0.4
    """R: share of their parameters that is removed."""
    method: str = "budgeted"
    """`svd` (truncated as they are), `whitened` (truncated for the calibration's inputs) or `budgeted` (and the budget
    shared out among matrices of a kind by what their truncation costs)."""
    data: DataOptions | None = None
    """Rows of the calibration; None: those that `sft` trains on, of the run's `data`."""
    calibration_rows: int = 256
    """Rows that the inputs of the matrices are measured on; half as many others are held out to check the result."""
    max_length: int = 2048
    """Longest calibration row, in tokens; longer ones are left out."""
    batch_size: int = 8
    """Calibration rows in one forward pass."""
    recover_steps: int = 0
    """Optimiser steps of tuning the factors, with the uncompressed branch as the teacher; 0: none."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's SFTConfig, for the recovery."""
