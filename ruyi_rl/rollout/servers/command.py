"""How a vLLM server for one exit is started: its command line and its environment. Pure functions."""

from __future__ import annotations

import getpass
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.engine_arguments import cache_bytes, cpu_defaults

if TYPE_CHECKING:
    from ruyi_rl.rollout.options import RolloutOptions
    from ruyi_rl.rollout.worker import RolloutSpec

OWNED = {
    "model": "each server serves its exit's branch",
    "served_model_name": "each server serves its exit's branch",
    "tokenizer": "servers take and give token ids",
    "skip_tokenizer_init": "servers take and give token ids",
    "load_format": "the weights come from the family",
    "generation_config": "every request says how it is sampled",
    "dtype": "servers hold weights in the dtype that the family is trained in",
    "max_model_len": "use rollout.max_model_len",
    "logprobs_mode": "the trainer needs the log-probs of the distribution that is sampled from",
    "tensor_parallel_size": "use rollout.tensor_parallel",
    "data_parallel_size": "use rollout.workers",
    "api_server_count": "use rollout.workers",
    "gpu_memory_utilization": "use rollout.gpu_memory_utilization",
    "kv_cache_memory_bytes": "use rollout.kv_cache_gib",
    "weight_transfer_config": "use rollout.transport",
    "disable_log_stats": "the counters show whether a server makes progress",
    "trust_remote_code": "each exit is a stock Qwen, which needs no code of its own",
    "hf_token": "servers load nothing from the hub",
    "host": "servers of the run listen on sockets of their own; for others use rollout.addresses",
    "port": "servers of the run listen on sockets of their own; for others use rollout.addresses",
    "uds": "servers of the run listen on sockets of their own; for others use rollout.addresses",
}
"""Engine arguments that `rollout.engine` may not set -> why, or what to set instead."""
OF_THE_LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
"""Variables that tell a process its rank: vLLM would take itself for a rank of the run."""


def check_engine(engine: Mapping[str, Any]) -> None:
    """Refuses what `rollout.engine` may not set.

    Raises:
        Refusal: naming the key and what to use instead.
    """
    for key, value in engine.items():
        if key in OWNED:
            raise Refusal(f"rollout.engine.{key}", f"{value!r} cannot be set", OWNED[key])


def server_arguments(
    options: RolloutOptions,
    spec: RolloutSpec,
    exit: str,
    model: Path | str,
    *,
    transport: str,
    cpu: bool,
    share: float = 1.0,
) -> dict[str, Any]:
    """vLLM's arguments for a server of an exit, but for where it listens.

    Args:
        model: folder with the exit's `config.json`; weights in it are not read.
        transport: `nccl` or `files`.
        cpu: whether vLLM runs on the CPU.
        share: of `gpu_memory_utilization`, for servers that share a GPU.

    Raises:
        Refusal: `rollout.kv_cache_gib` has no room for one sequence.
    """
    arguments: dict[str, Any] = {
        "model": str(model),
        "served_model_name": exit,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": str(spec.dtype).removeprefix("torch."),
        "max_model_len": spec.max_model_len,
        "logprobs_mode": "processed_logprobs",
        "seed": spec.seed,
        "uvicorn_log_level": "warning",
        "disable_uvicorn_access_log": True,
    }
    if options.tensor_parallel > 1:
        arguments["tensor_parallel_size"] = options.tensor_parallel
    if transport == "nccl":
        arguments["weight_transfer_config"] = {"backend": "nccl"}
    arguments |= {**(cpu_defaults(spec.max_model_len) if cpu else {}), **options.engine}
    cache = cache_bytes(options, spec, exit, arguments, cuda=not cpu)
    if not cpu:
        arguments["gpu_memory_utilization"] = round(options.gpu_memory_utilization * share, 4)
    return arguments | ({} if cache is None else {"kv_cache_memory_bytes": cache})


def command_line(arguments: Mapping[str, Any], python: str = sys.executable) -> list[str]:
    """`python -m vllm… --flag value …` for vLLM's arguments."""
    # The command `vllm` looks for a package of its own name, which a build for CPUs alone does not have.
    return [python, "-m", "vllm.entrypoints.openai.api_server", *flag_words(arguments)]


def flag_words(arguments: Mapping[str, Any]) -> list[str]:
    """`{"max_model_len": 512}` -> `--max-model-len 512`; true and false become `--x` and `--no-x`, None is left out,
    a list's items follow one another, a mapping is JSON."""
    words = []
    for key, value in arguments.items():
        flag = key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", json.dumps(dict(value))]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words


def server_environment(
    arguments: Mapping[str, Any],
    folder: Path,
    *,
    cpu: bool,
    threads: int = 1,
    devices: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The environment of a server that the run starts.

    Args:
        arguments: vLLM's.
        folder: a short path, for the sockets and temporary files of this server alone.
        threads: of its engine, on a CPU.
        devices: its CUDA_VISIBLE_DEVICES; None: as they are.
        environment: the run's own.
    """
    server = {name: value for name, value in environment.items() if name not in OF_THE_LAUNCHER}
    server |= {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes that take weights
        "VLLM_RPC_BASE_PATH": str(folder),
        "TMPDIR": str(folder),
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    # What is compiled once is of use to later starts as well.
    compiled = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    server.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    if devices is not None:
        server["CUDA_VISIBLE_DEVICES"] = devices
    if cpu:
        server |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        server.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the cache's size
        if arguments.get("tensor_parallel_size", 1) == 1:
            # The engine in one process, not in one and a worker: it starts in 15 seconds, not in 27.
            server["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if arguments.get("enforce_eager"):
            server |= {"TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    return server


def threads_per_server(cores: int, servers: int, environment: Mapping[str, str] = os.environ) -> int:
    """Threads of each server's engine on a CPU, so that together they have no more than all ranks may use."""
    allowed = environment.get("OMP_NUM_THREADS", "")
    if allowed.isdigit():
        cores = min(cores, int(allowed) * int(environment.get("WORLD_SIZE", "1")))
    return max(1, cores // max(1, servers))


def gpu_shares(devices: Sequence[str | None]) -> list[float]:
    """(servers,) of `gpu_memory_utilization`: servers that see the same GPU divide it evenly.

    Args:
        devices: (servers,) CUDA_VISIBLE_DEVICES; None: all of the machine.
    """
    sets = [None if listed is None else frozenset(listed.split(",")) for listed in devices]
    return [1 / sum(a is None or b is None or bool(a & b) for b in sets) for a in sets]


def address_command(options: RolloutOptions, spec: RolloutSpec, exit: str, model: str, *, transport: str) -> list[str]:
    """The command line of a server that the run can be given as an address; it needs VLLM_SERVER_DEV_MODE=1.

    Args:
        model: folder of the exported branch, or a stock model of its shape.
        transport: `nccl` or `files`.
    """
    arguments = server_arguments(options, spec, exit, model, transport=transport, cpu=False)
    kept = ("model", "served_model_name", "skip_tokenizer_init", "dtype", "max_model_len", "logprobs_mode")
    extra = ("weight_transfer_config", "tensor_parallel_size", *options.engine)
    return command_line({key: arguments[key] for key in (*kept, *extra) if key in arguments}, python="python")
