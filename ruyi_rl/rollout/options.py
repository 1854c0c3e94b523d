"""`rollout`: who generates completions. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("auto", "transformers", "vllm", "vllm_server")
"""What `backend` may be."""
TRANSPORTS = ("auto", "nccl", "files")
"""What `transport` may be."""


@dataclass
class RolloutOptions:
    """The `rollout` group."""

    backend: str = "auto"
    """`vllm`: engines in the training processes; `vllm_server`: vLLM servers, one or more an exit; `transformers`:
    generate on the family itself; `auto`: vllm where it can be imported, else transformers, and the run says which."""
    batch_size: int = 256
    """transformers: most sequences in one generate call of an exit."""

    max_model_len: int | None = None
    """Longest prompt and completion together that an engine takes, in tokens; None: what the run needs."""
    kv_cache_gib: float | None = None
    """Memory of one engine's key-value cache, GiB; None: on a CPU what its sequences need (4 at most), on a GPU what
    `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = 0.45
    """Share of a GPU for all engines on it together, weights and caches."""
    tensor_parallel: int = 1
    """vllm: ranks that share one engine; vllm_server: GPUs of one server."""
    sleep: bool = True
    """vllm on GPUs: engines give their memory back while the trainer works."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Any further engine argument of vLLM (`max_num_seqs`, `enforce_eager`, `max_num_batched_tokens` …)."""

    workers: dict[str, int] = field(default_factory=dict)
    """vllm_server: exit -> servers that the run starts for it; 1 for an exit that is not named."""
    devices: dict[str, list[str]] = field(default_factory=dict)
    """vllm_server: exit -> CUDA_VISIBLE_DEVICES of each of its servers; an exit that is not named sees all devices."""
    addresses: dict[str, list[str]] = field(default_factory=dict)
    """vllm_server: exit -> base URLs of servers that run already; the run starts none for these exits."""
    transport: str = "auto"
    """vllm_server: how weights travel: `nccl` (vLLM's weight transfer), `files` (safetensors in `exchange`), or `auto`:
    nccl where this process and the servers have GPUs, else files."""
    exchange: str | None = None
    """vllm_server: folder for weight files that every server sees under the same path; None: shared memory."""
    timeout: float = 120.0
    """vllm_server: seconds without any progress after which a worker counts as hung."""
    start_timeout: float = 600.0
    """vllm_server: seconds that a server may take to answer after its start."""
    max_failures: int = 8
    """vllm_server: failures of workers in one run after which it stops."""
