"""Servers that others have started: do they serve the exit that they are to serve, and how the run needs it?"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.servers.client import Endpoint, WorkerClient, WorkerFailed
from ruyi_rl.rollout.servers.command import address_command
from ruyi_rl.rollout.servers.serving import run

if TYPE_CHECKING:
    from ruyi_rl.rollout.options import RolloutOptions
    from ruyi_rl.rollout.worker import RolloutSpec

ANSWER_SECONDS = 10.0
INFO_SECONDS = 60.0
"""vLLM looks the whole machine over when it is first asked for its configuration."""


@dataclass(frozen=True)
class Problem:
    """Why a server cannot serve an exit."""

    text: str
    remedy: str


@dataclass(frozen=True)
class Structure:
    """What tells one branch from another in the print of vLLM's model."""

    architecture: str
    layers: int
    hidden_size: int
    vocab_size: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.layers} layers, hidden size {self.hidden_size}, {self.vocab_size} tokens"


def structure_of(text: str) -> Structure | None:
    """Reads vLLM's print of a model; None where it is of another kind."""
    architecture = re.match(r"\w+", text)
    embedding = re.search(r"\(embed_tokens\): \w+\(num_embeddings=(\d+),.*?embedding_dim=(\d+)", text)
    layers = re.findall(r"^ +\((\d+)(?:-(\d+))?\): (?:\d+ x )?\w*DecoderLayer\(", text, re.MULTILINE)
    if architecture is None or embedding is None or not layers:
        return None
    count = sum(int(last or first) - int(first) + 1 for first, last in layers)
    return Structure(architecture.group(), count, int(embedding.group(2)), int(embedding.group(1)))


def expected_structure(spec: RolloutSpec, exit: str) -> Structure:
    """What a server of an exit has to serve."""
    config = spec.config.branch_config(exit)
    architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[config.model_type]
    return Structure(architecture, config.num_hidden_layers, config.hidden_size, config.vocab_size)


def configuration_problem(config: Mapping[str, Any], spec: RolloutSpec, nccl: bool) -> Problem | None:
    """What of a server's configuration would make it answer wrongly."""
    model = config.get("model_config") or {}
    length, mode, held = model.get("max_model_len", 0), model.get("logprobs_mode"), str(model.get("dtype"))
    dtype = str(spec.dtype).removeprefix("torch.")
    if length < spec.max_model_len:
        return Problem(
            f"takes {length} tokens, and prompt and completion together may have {spec.max_model_len}",
            f"start it with --max-model-len {spec.max_model_len}",
        )
    if mode != "processed_logprobs":
        return Problem(
            f"reports {mode}, which are not of the distribution that is sampled from",
            "start it with --logprobs-mode processed_logprobs",
        )
    if held.removeprefix("torch.") != dtype:
        return Problem(f"holds weights in {held} instead of {dtype}", f"start it with --dtype {dtype}")
    if nccl and (config.get("weight_transfer_config") or {}).get("backend") != "nccl":
        return Problem(
            "does not take weights by NCCL", 'start it with --weight-transfer-config \'{"backend": "nccl"}\''
        )
    return None


async def address_problem(
    client: WorkerClient, exit: str, spec: RolloutSpec, folders: Mapping[str, Path] | None
) -> Problem | None:
    """Why a server that answers cannot serve an exit; None where it can.

    Args:
        folders: None where weights travel by NCCL.
    """
    try:
        info = await client.server_info(INFO_SECONDS)
        structure = structure_of(await client.model_structure(INFO_SECONDS))
    except WorkerFailed as failure:
        return Problem(
            f"does not tell what it serves, and would take no weights either: {failure}",
            "start it with VLLM_SERVER_DEV_MODE=1",
        )
    expected = expected_structure(spec, exit)
    if structure != expected:
        return Problem(f"serves another model: {structure or 'of an unknown kind'} instead of {expected}", "")
    return configuration_problem(info.get("vllm_config") or {}, spec, nccl=folders is None)


def check_addresses(options: RolloutOptions, spec: RolloutSpec, nccl: bool) -> None:
    """Asks every server of `rollout.addresses` whether it can serve its exit.

    Raises:
        Refusal: one cannot; names it, what is wrong, and the remedy.
    """
    listed = [(exit, url) for exit in spec.exits for url in options.addresses.get(exit, ())]
    seen: dict[str, str] = {}
    for exit, url in listed:
        if not re.match(r"https?://[^/]+", url):
            raise Refusal(f"rollout.addresses.{exit}", f"{url!r} is no base URL", "http://<host>:<port>")
        if url.rstrip("/") in seen:
            raise Refusal(
                f"rollout.addresses.{exit}",
                f"{url} is given for {seen[url.rstrip('/')]} already",
                "one server an exit: each serves a model of its own",
            )
        seen[url.rstrip("/")] = exit
        if not nccl and options.exchange is None and not is_here(urlsplit(url).hostname or ""):
            raise Refusal(
                "rollout.exchange",
                f"{url} may be on another machine, which does not see this one's memory",
                "a folder that both see under the same path",
            )

    async def ask_all() -> list[Problem | None]:
        return await asyncio.gather(*(ask(exit, url) for exit, url in listed))

    async def ask(exit: str, url: str) -> Problem | None:
        async with WorkerClient(Endpoint(url)) as client:
            if not await client.answers(ANSWER_SECONDS):
                command = address_command(options, spec, exit, "<folder>", transport="nccl" if nccl else "files")
                text = f"VLLM_SERVER_DEV_MODE=1 {shlex.join(command)} --host … --port …"
                return Problem("does not answer", f"start it, for example: {text}")
            return await address_problem(client, exit, spec, None if nccl else {})

    for (exit, url), problem in zip(listed, run(ask_all())):
        if problem is not None:
            raise Refusal(f"rollout.addresses.{exit}", f"{url} {problem.text}", problem.remedy)


def answering_layers(urls: Sequence[str]) -> list[int | None]:
    """Layers of the model behind each address; None where nobody answers, 0 where it does not tell."""

    async def ask(url: str) -> int | None:
        async with WorkerClient(Endpoint(url)) as client:
            if not await client.answers(ANSWER_SECONDS):
                return None
            try:
                structure = structure_of(await client.model_structure(INFO_SECONDS))
            except WorkerFailed:
                return 0
            return structure.layers if structure else 0

    async def ask_all() -> list[int | None]:
        return await asyncio.gather(*map(ask, urls))

    return run(ask_all())


def is_here(host: str) -> bool:
    """Whether a name or number is this machine's."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
