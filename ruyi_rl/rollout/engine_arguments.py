"""What an engine and a request are asked for in vLLM's words. Importing this module imports no vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rollout.engine_memory import GIB, cache_shape, check_cache, default_cache_bytes, head_size
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.worker import RolloutSpec, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LOAD_FORMAT = "ruyi_branch"
"""Name under which vLLM knows the loader of `shared_trunk`."""
CPU_BATCHED_TOKENS = 8192
"""Tokens that an engine on a CPU takes in one step."""
GPU_BLOCK = 16
"""vLLM's usual block on GPUs, in tokens."""
SLEEPING_WORKER = "ruyi_rl.rollout.gpu_worker.SleepingWorker"
OWNED = {
    "model": "each engine serves its exit's branch",
    "tokenizer": "engines take and give token ids",
    "skip_tokenizer_init": "engines take and give token ids",
    "load_format": "the weights come from the family",
    "dtype": "engines hold weights in the dtype that the family is trained in",
    "seed": "every request has its own, which follows from the run's `seed`",
    "max_model_len": "use rollout.max_model_len",
    "logprobs_mode": "the trainer needs the log-probs of the distribution that is sampled from",
    "tensor_parallel_size": "use rollout.tensor_parallel",
    "pipeline_parallel_size": "use rollout.tensor_parallel",
    "data_parallel_size": "every rank has its own engines",
    "distributed_executor_backend": "engines live in the ranks of the run",
    "worker_cls": "engines live in the ranks of the run",
    "enable_sleep_mode": "use rollout.sleep",
    "gpu_memory_utilization": "use rollout.gpu_memory_utilization",
    "kv_cache_memory_bytes": "use rollout.kv_cache_gib",
    "trust_remote_code": "each exit is a stock Qwen, which needs no code of its own",
    "hf_token": "engines load nothing from the hub",
}
"""Engine arguments that `rollout.engine` may not set -> why, or what to set instead."""
LOWEST_TEMPERATURE = 0.01
"""vLLM takes this instead of a temperature between 0 and this."""


def check_engine_options(engine: Mapping[str, Any]) -> None:
    """Refuses what `rollout.engine` may not set, and what vLLM does not know. Imports vLLM.

    Raises:
        Refusal: naming the key and what to use instead.
    """
    from vllm.engine.arg_utils import EngineArgs

    names = {field.name for field in dataclasses.fields(EngineArgs)}
    for key, value in engine.items():
        if key in OWNED:
            raise Refusal(f"rollout.engine.{key}", f"{value!r} cannot be set", OWNED[key])
        if key not in names:
            raise Refusal(
                f"rollout.engine.{key}", "vLLM has no such engine argument", nearest(key, names - OWNED.keys())
            )


def check_attention(config: PreTrainedConfig) -> None:
    """Refuses a family whose heads vLLM's CPU build has no attention for; on GPUs vLLM itself checks. Imports vLLM.

    Raises:
        Refusal: naming the sizes that there are.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = head_size(config)
    if current_platform.is_cpu() and not CPUAttentionBackend.supports_head_size(size):
        sizes = ", ".join(map(str, CPUAttentionBackend.get_supported_head_sizes()))
        raise Refusal(
            "rollout", f"vLLM on a CPU has no attention for heads of {size}, only of {sizes}", "rollout=transformers"
        )


def cpu_defaults(max_model_len: int) -> dict[str, Any]:
    """Engine arguments on a CPU that `rollout.engine` may replace; the cache's size follows from `max_num_seqs` and
    `block_size`.

    Prompts are not cut into chunks: after each chunk but the last vLLM winds a request's generator back, which torch's
    generators on a CPU do not support, so that the engine dies.
    """
    return {
        "enforce_eager": True,
        "max_num_seqs": 256,
        "block_size": 128,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, max_model_len),
    }


def engine_arguments(
    options: RolloutOptions, spec: RolloutSpec, exit: str, world_size: int, gpu_share: float | None
) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` for an exit's engine, whose configuration lies in `spec.folder/<exit>`.

    Args:
        options: the `rollout` group; its `engine` replaces what is not in `OWNED`.
        spec: the family and the run.
        exit: the exit's name.
        world_size: ranks of the run.
        gpu_share: the engine's share of the GPU; None on a CPU.

    Raises:
        Refusal: `kv_cache_gib` has no room for one sequence.
    """
    cuda = gpu_share is not None
    defaults = {
        "disable_log_stats": True,
        "generation_config": "vllm",
        **({} if cuda else cpu_defaults(spec.max_model_len)),
    }
    arguments = {
        **defaults,
        **options.engine,
        "model": str(spec.folder / exit),
        "skip_tokenizer_init": True,
        "load_format": LOAD_FORMAT,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "seed": spec.seed,
        "max_model_len": spec.max_model_len,
        "logprobs_mode": "processed_logprobs",
        "tensor_parallel_size": options.tensor_parallel,
    }
    if world_size > 1:
        arguments["distributed_executor_backend"] = "external_launcher"
    if cuda:
        arguments["gpu_memory_utilization"] = gpu_share
        if options.sleep:
            arguments |= {"enable_sleep_mode": True, "worker_cls": SLEEPING_WORKER}
    cache = cache_bytes(options, spec, exit, arguments, cuda)
    if cache is not None:
        arguments["kv_cache_memory_bytes"] = cache
    return arguments


def cache_bytes(
    options: RolloutOptions, spec: RolloutSpec, exit: str, arguments: Mapping[str, Any], cuda: bool
) -> int | None:
    """Bytes of an engine's key-value cache; None: what vLLM finds free within the engine's share of the GPU.

    Raises:
        Refusal: `kv_cache_gib` has no room for one sequence.
    """
    narrow = str(arguments.get("kv_cache_dtype", "auto")).startswith("fp8")
    shape = cache_shape(
        spec.config.branch_config(exit),
        1 if narrow else spec.dtype.itemsize,
        arguments.get("block_size") or GPU_BLOCK,
        options.tensor_parallel,
    )
    if options.kv_cache_gib is not None:
        given = int(options.kv_cache_gib * GIB)
        check_cache(exit, shape, spec.max_model_len, given)
        return given
    return None if cuda else default_cache_bytes(shape, arguments["max_num_seqs"], spec.max_model_len)


def sampling_arguments(sampling: Sampling, end_token_ids: Sequence[int], seed: int) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for one request; nothing is left to the model's own generation config.

    Raises:
        ValueError: a temperature so low that vLLM would take another.
    """
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"vLLM samples at a temperature of 0 or of at least {LOWEST_TEMPERATURE}, not at {sampling.temperature:g}"
        )
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": seed,
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": True,  # the model's own: `stop_token_ids` are all that count
        "logprobs": 0,  # the sampled token's alone
        "detokenize": False,
    }
