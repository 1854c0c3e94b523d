"""What is said to a vLLM server over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from ruyi_rl.rollout.engine_arguments import sampling_arguments
from ruyi_rl.rollout.servers.work import Group, Rubbish, read_answer
from ruyi_rl.rollout.worker import Completion, Sampling

CONNECTIONS = 16
"""Of one HTTP client: the time that httpx takes to find a free one grows with their number, for each request."""
IDLE_SECONDS = 2.0
"""How long a connection is kept unused; vLLM closes it after 5."""
CONNECT_SECONDS = 10.0
COUNTERS = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)


class WorkerFailed(Exception):
    """A worker cannot be used as it is; the message says what it did.

    Args:
        dying: its process may be about to end, which would say more.
    """

    def __init__(self, message: str, dying: bool = False):
        self.dying = dying
        super().__init__(message)


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens."""

    url: str
    """Its base URL; over a socket of this machine the host is only a name."""
    socket: Path | None = None

    def transport(self, connections: int = CONNECTIONS) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_SECONDS
        )
        uds = None if self.socket is None else str(self.socket)
        return httpx.AsyncHTTPTransport(verify=certificates(), limits=limits, uds=uds, trust_env=False)


@cache
def certificates() -> ssl.SSLContext:
    """Read once: it takes longer than to open a client."""
    return httpx.create_ssl_context()


class WorkerClient:
    """The requests that a pool makes of one server; a context, inside a running event loop.

    Every method raises `WorkerFailed` where the connection breaks, the time is up, or the answer is an error or
    rubbish.

    Args:
        endpoint: where it listens.
        requests: completions that are under way at a time.
    """

    def __init__(self, endpoint: Endpoint, requests: int = 1):
        self.endpoint = endpoint
        self._control = self._open(4)
        self._shards = [self._open(CONNECTIONS) for _ in range(-(-requests // CONNECTIONS))]
        self._turn = itertools.count()

    def _open(self, connections: int) -> httpx.AsyncClient:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        transport = self.endpoint.transport(connections)
        return httpx.AsyncClient(base_url=self.endpoint.url, transport=transport, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in (self._control, *self._shards):
            await client.aclose()

    async def answers(self, seconds: float) -> bool:
        """Whether the server says that it is well."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._control.get("/health")
        except (httpx.HTTPError, TimeoutError):
            return False
        return response.status_code == 200

    async def weight_version(self, seconds: float) -> str:
        """What `set_weight_version` was last told; "default" where it was not."""
        return str((await self._call("GET", "/weight_info", seconds)).get("weight_version"))

    async def set_weight_version(self, version: str, seconds: float) -> None:
        await self._call("POST", "/update_weight_version", seconds, {"new_version": version})

    async def load_weights(self, folder: Path, seconds: float) -> None:
        """Has the server read the weights in a folder, and forget cached prefixes."""
        # A server that was started without weights would look for none either.
        await self._rpc("update_config", {"overrides": {"load_config": {"load_format": "auto"}}}, seconds)
        await self._rpc("reload_weights", {"weights_path": str(folder)}, seconds)
        await self.forget_prefixes(seconds)

    async def forget_prefixes(self, seconds: float) -> None:
        """Empties the prefix cache, which holds keys and values of the weights before."""
        # What a request that was given up still holds is freed a moment later.
        for pause in (0.05, 0.2, 1.0, 5.0, None):
            if (await self._call("POST", "/reset_prefix_cache", seconds)).get("success"):
                return
            if pause is not None:
                await asyncio.sleep(pause)
        raise WorkerFailed("could not empty its prefix cache: requests are still running")

    async def model_structure(self, seconds: float) -> str:
        """The model as vLLM prints it."""
        results = (await self._rpc("get_model_inspection", {}, seconds)).get("results")
        if not isinstance(results, list) or not results:
            raise WorkerFailed("does not tell the structure of its model")
        return str(results[0])

    async def server_info(self, seconds: float) -> dict[str, Any]:
        """vLLM's configuration of the server, as nested dictionaries."""
        return await self._call("GET", "/server_info?config_format=json", seconds)

    async def progress(self, seconds: float) -> float | None:
        """Tokens that the server has read and written since its start; None where it does not tell."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._control.get("/metrics")
        except (httpx.HTTPError, TimeoutError):
            return None
        counters = COUNTERS.findall(response.content) if response.status_code == 200 else []
        return sum(float(value) for value in counters) if counters else None

    async def complete(
        self, group: Group, sampling: Sampling, vocabulary: int, end_token_ids: Sequence[int]
    ) -> list[Completion]:
        """The completions of a group, in order; waits for as long as it takes."""
        payload = sampling_arguments(sampling, end_token_ids, group.seed) | {
            "prompt": list(group.prompt_ids),
            "n": len(group.positions),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        del payload["detokenize"]  # of `SamplingParams` alone
        client = self._shards[next(self._turn) % len(self._shards)]
        body = await self._call("POST", "/v1/completions", None, payload, client)
        try:
            return read_answer(body, len(group.positions), sampling, vocabulary, end_token_ids)
        except Rubbish as error:
            raise WorkerFailed(f"answered rubbish: {error}") from None

    async def post(self, path: str, seconds: float, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to a POST."""
        return await self._call("POST", path, seconds, body)

    async def _rpc(self, method: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        return await self._call("POST", "/collective_rpc", seconds, {"method": method, "kwargs": arguments})

    async def _call(
        self,
        method: str,
        path: str,
        seconds: float | None,
        body: dict[str, Any] | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> dict[str, Any]:
        name = path.partition("?")[0]
        try:
            async with asyncio.timeout(seconds):
                response = await (client or self._control).request(method, path, json=body)
        except TimeoutError:
            raise WorkerFailed(f"{name} was not answered within {seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WorkerFailed(
                f"{name} was not answered: {type(error).__name__} {error}".rstrip(), dying=True
            ) from None
        if response.status_code != 200:
            text = f"{name} was answered with status {response.status_code}: {error_text(response)}"
            raise WorkerFailed(text, dying=response.status_code >= 500)
        try:
            answer = response.json()
        except ValueError:
            raise WorkerFailed(f"answered rubbish: {name} gave no JSON but {response.text[:60]!r}") from None
        if not isinstance(answer, dict):
            raise WorkerFailed(f"answered rubbish: {name} gave {str(answer)[:60]!r}")
        return answer


def error_text(response: httpx.Response) -> str:
    """What an error's body says, on one line."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text
    return " ".join(str(message).split())[:300]
