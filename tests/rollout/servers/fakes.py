"""A pool of fake servers under real guardians, and what they should have answered."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_server
import torch
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.command import command_line
from ruyi_rl.rollout.vllm_server import VllmServerRollout
from ruyi_rl.rollout.worker import Completion, Request, RolloutSpec, Sampling

SAMPLING = Sampling(max_new_tokens=12)
MAX_MODEL_LEN = 64


def small_family() -> Family:
    torch.manual_seed(0)
    backbone = Qwen3Config(
        vocab_size=267,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=256,
        eos_token_id=fake_server.END,
    )
    return Family.from_scratch(backbone, {"small": 0, "large": 2})


def spec_of(family: Family, folder: Path) -> RolloutSpec:
    return RolloutSpec(
        config=family.config,
        exits=tuple(family.exits),
        end_token_ids=(fake_server.END,),
        pad_token_id=256,
        dtype=torch.float32,
        max_model_len=MAX_MODEL_LEN,
        folder=folder / "logs",
    )


def requests_of(exits: Sequence[str], prompts: int = 6, samples: int = 4) -> list[Request]:
    """Every prompt's samples at every exit, as a trainer orders them."""
    return [
        Request(exit, (65 + prompt, 66, 67), seed=1000 * prompt + sample)
        for prompt in range(prompts)
        for exit in exits
        for sample in range(samples)
    ]


class FakePool:
    """A rollout whose servers are fakes; server n's k-th start is called `s<n>-<k>` in the script.

    Args:
        folder: for the script and the logs.
        script: name -> behaviour (see fake_server).
        options: of `RolloutOptions`.
    """

    def __init__(self, folder: Path, script: Mapping[str, Any] | None = None, **options: Any):
        self.family = small_family()
        self.script = folder / "script.json"
        self.script.write_text(json.dumps(script or {}))
        self.lines: list[str] = []
        self.beats: list[float] = []
        settings = RolloutOptions(**{"timeout": 20.0, "start_timeout": 60.0, **options})
        self.rollout = VllmServerRollout(
            settings,
            spec_of(self.family, folder),
            report=self.lines.append,
            command=self.command,
            beat=lambda: self.beats.append(time.monotonic()),
        )

    def command(self, arguments: Mapping[str, Any]) -> list[str]:
        return [sys.executable, fake_server.__file__, "--script", str(self.script), *command_line(arguments)[3:]]

    def step(self) -> None:
        """Moves the family, as an optimiser does."""
        with torch.no_grad():
            for parameter in self.family.parameters():
                parameter.add_(0.1)

    def sync(self) -> None:
        self.rollout.update_weights(self.family)

    def expected(self, requests: Sequence[Request]) -> list[Completion]:
        """What any server with the family's current weights answers."""
        folders = self.rollout._exchange.weights
        digests = {exit: fake_server.weights_digest(folder) for exit, folder in folders.items()}
        completions = []
        for request in requests:
            tokens, log_probs = fake_server.draw(
                list(request.prompt_ids), request.seed, digests[request.exit], SAMPLING.max_new_tokens
            )
            completions.append(Completion(tokens, tokens[-1] == fake_server.END, log_probs))
        return completions

    def check(self, requests: Sequence[Request] | None = None) -> None:
        """Generates: every request has to get its own answer, from the current weights."""
        requests = requests_of(tuple(self.family.exits)) if requests is None else requests
        assert self.rollout.generate(requests, SAMPLING) == self.expected(requests)

    def events(self, name: str, event: str = "ask") -> list[dict[str, Any]]:
        """What a start of a server has noted."""
        log = Path(f"{self.script}.{name}.log")
        lines = log.read_text().splitlines() if log.exists() else []
        return [row for row in map(json.loads, lines) if row["event"] == event]

    def pid(self, name: str) -> int:
        """Process of a start of a server, once it is up."""
        deadline = time.monotonic() + 30
        while not (rows := self.events(name, "up")):
            assert time.monotonic() < deadline, f"{name} does not come up"
            time.sleep(0.02)
        return rows[-1]["pid"]

    def failures(self) -> int:
        return sum(statistics.failures for statistics in self.rollout.statistics().values())


def children(pid: int) -> list[int]:
    """A process's descendants, ended ones included."""
    from ruyi_rl.rollout.servers import guardian

    found = []
    for child in guardian.children(pid):
        found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only waited for."""
    from ruyi_rl.rollout.servers import guardian

    return guardian.process_state(pid) not in ("", "Z", "X")


def gone(pids: Sequence[int], seconds: float = 20.0) -> bool:
    """Waits until none of these processes runs."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def exchange_folders() -> set[str]:
    """The folders of rollouts of this user in shared memory."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("ruyi-rollout-")}
