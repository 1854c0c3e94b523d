"""`model`: which family to build. Read by `stage=init`; importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    trust_remote_code: bool = False
    """Let a base's repository run its own code."""
