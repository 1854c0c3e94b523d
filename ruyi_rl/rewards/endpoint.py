"""Questions to a language model behind an OpenAI-compatible endpoint, such as a vLLM server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

FIRST_WAIT = 0.5
"""Seconds before the second try; twice as long before every further one, up to `LONGEST_WAIT`."""
LONGEST_WAIT = 20.0


@dataclass(frozen=True)
class EndpointOptions:
    """Where a model is asked, and how patiently."""

    url: str
    """The base that `/chat/completions` follows, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The name that the server knows it by."""
    api_key_env: str | None = None
    """The environment variable that holds the key. None: no key is sent."""
    concurrency: int = 16
    """Questions on their way at the same time."""
    seconds: float = 60.0
    """For one question, with all its tries."""
    max_tokens: int = 1024
    """Of one answer."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as `chat_template_kwargs`."""

    def __post_init__(self):
        place = urlsplit(self.url if isinstance(self.url, str) else "")
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"url is the base of an endpoint such as http://127.0.0.1:8000/v1, not {self.url!r}")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model is the name that the server knows it by, not {self.model!r}")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set")
        for name, least in {"concurrency": 1, "seconds": 0.1, "max_tokens": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise ValueError(f"{name} is a number, {least} or more, not {value!r}")


class EndpointError(ConnectionError):
    """The endpoint gave no answer; the message has its URL and what it said, never the key."""


class Endpoint:
    """Asks one question at a time of `options.concurrency` at once; use it in an `async with` block."""

    def __init__(self, options: EndpointOptions):
        self.options = options
        self._client = httpx.AsyncClient(**_client_options(options))
        self._slots = asyncio.Semaphore(int(options.concurrency))

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    async def ask(self, question: str) -> str:
        """The model's answer at temperature 0.

        A lost connection, the statuses 408, 429 and 5xx are tried again with growing pauses (or after as long as
        `Retry-After` says) until `options.seconds` are over.

        Raises:
            EndpointError: no answer in that time, another status, or an answer that is none.
        """
        body = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": int(self.options.max_tokens),
            **self.options.request,
        }
        async with self._slots:
            deadline, wait = time.monotonic() + self.options.seconds, FIRST_WAIT
            while True:
                pause, problem = wait, ""
                try:
                    left = max(0.1, deadline - time.monotonic())
                    async with asyncio.timeout(left):
                        response = await self._client.post("chat/completions", json=body)
                    if response.status_code == 200:
                        return self._content(response)
                    problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
                    if response.status_code not in (408, 429) and response.status_code < 500:
                        raise self._failure(problem)
                    pause = max(wait, _retry_after(response))
                except (httpx.TransportError, TimeoutError) as error:
                    problem = f"{type(error).__name__}: {error}".rstrip(": ")
                if time.monotonic() + pause >= deadline:
                    raise self._failure(f"no answer in {self.options.seconds:g} s; last: {problem}")
                await asyncio.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)

    def _content(self, response: httpx.Response) -> str:
        try:
            return response.json()["choices"][0]["message"]["content"] or ""
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._failure(f"no chat completion but {response.text[:200]!r}") from error

    def _failure(self, problem: str) -> EndpointError:
        return EndpointError(f"{self.options.url}: {problem}")


def check_endpoint(options: EndpointOptions) -> None:
    """Ask the endpoint for its models, as patiently as for an answer.

    Raises:
        EndpointError: it does not answer, or refuses the key.
        ValueError: it lists its models, and `options.model` is not among them.
    """
    deadline, wait = time.monotonic() + options.seconds, FIRST_WAIT
    with httpx.Client(**_client_options(options)) as client:
        while True:
            try:
                response = client.get("models", timeout=max(0.1, deadline - time.monotonic()))
                problem = f"status {response.status_code}"
            except httpx.TransportError as error:
                response, problem = None, f"{type(error).__name__}: {error}"
            if response is not None and response.status_code < 500:
                break
            if time.monotonic() + wait >= deadline:
                raise EndpointError(f"{options.url}: no answer in {options.seconds:g} s; last: {problem}")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
    if response.status_code in (401, 403):
        raise EndpointError(
            f"{options.url}: status {response.status_code}: the key of {options.api_key_env} is refused"
        )
    # Some endpoints have no such list: that is no fault.
    try:
        names = [entry["id"] for entry in response.json()["data"]] if response.status_code == 200 else []
    except (ValueError, KeyError, TypeError):
        names = []
    if names and options.model not in names:
        raise ValueError(f"{options.url} has no model {options.model!r}; it has {', '.join(map(str, names[:10]))}")


def _client_options(options: EndpointOptions) -> dict[str, Any]:
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    # A proxy of the environment is not for this machine's own servers.
    here = urlsplit(options.url).hostname in ("localhost", "127.0.0.1", "::1")
    return {
        "base_url": options.url.rstrip("/") + "/",
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": options.seconds,
        "trust_env": not here,
        # Loading the certificates takes longer than a question to a server nearby, which needs none.
        "verify": urlsplit(options.url).scheme == "https",
        "limits": httpx.Limits(max_connections=int(options.concurrency)),
    }


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it asks for none (or gives a date)."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
