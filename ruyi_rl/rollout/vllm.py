"""Rollouts by vLLM inside the training processes: one engine an exit, the trunk held once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ruyi_rl import ranks
from ruyi_rl.family import Family
from ruyi_rl.rollout.engine import Engine, enter_default_group, leave_groups
from ruyi_rl.rollout.engine_arguments import check_attention, check_engine_options, engine_arguments, sampling_arguments
from ruyi_rl.rollout.engine_memory import memory_shares
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.tensor_parallel import RequestGroup, check_tensor_parallel, own_shared_memory
from ruyi_rl.rollout.vllm_version import set_environment
from ruyi_rl.rollout.weights import BranchTensor, branch_layout, branch_tensors, write_branch_config
from ruyi_rl.rollout.worker import (
    Arrived,
    Completion,
    ExitStatistics,
    Request,
    RolloutSpec,
    Sampling,
    Statistics,
    WorkerHealth,
)

if TYPE_CHECKING:
    from vllm import RequestOutput


class VllmRollout:
    """Engines in this process, one for each exit of `spec.exits`.

    Every rank has its own engines, or shares them with its neighbours (`options.tensor_parallel`). The deepest exit's
    engine holds the trunk, and the others use it there.

    Log-probs are of the distribution that was sampled from: repetition penalty, temperature, min_p, top_k and top_p, in
    this order. At temperature 0 they are of the model's distribution at temperature 1, after the penalty.

    A request's seed decides its draws, whatever else is in the batch; what the batch does change is the rounding of the
    logits, so that a draw on the edge between two tokens may fall otherwise.

    Args:
        options: the `rollout` group.
        spec: the family and the run.
        share_trunk: False lets every engine hold its whole branch, to compare with.
        beat: called with every step of an engine.

    Raises:
        Refusal: an engine argument that is not allowed, a model or ranks that vLLM cannot serve, too little memory.
    """

    name = "vllm"
    runs_family = False

    def __init__(
        self,
        options: RolloutOptions,
        spec: RolloutSpec,
        share_trunk: bool = True,
        beat: Callable[[], None] = lambda: None,
    ):
        check_tensor_parallel(options.tensor_parallel, ranks.world_size(), spec.config)
        set_environment()
        check_engine_options(options.engine)
        check_attention(spec.config)
        self.spec, self._beat = spec, beat
        self.engines: dict[str, Engine] = {}
        """Exit -> its engine, deepest first, as weights have to come."""
        self._sleeps = options.sleep and torch.cuda.is_available()
        self._asleep: set[str] = set()
        self._closed = False
        self._statistics = Statistics()
        if ranks.world_size() == 1:
            enter_default_group()
        self._group = RequestGroup(options.tensor_parallel)
        exits = sorted(spec.exits, key=spec.config.exits.__getitem__, reverse=True)
        self._layouts = {exit: synced_tensors(spec, exit, private=share_trunk and exit != exits[0]) for exit in exits}
        shares = gpu_shares(options, spec, self._layouts)
        with ExitStack() as unfinished, own_shared_memory(options.tensor_parallel):
            unfinished.callback(self.close)
            for exit in exits:
                arguments = engine_arguments(options, spec, exit, ranks.world_size(), shares.get(exit))
                self.engines[exit] = self._engine(exit, arguments, share_trunk)
            self._sleep()
            unfinished.pop_all()

    def update_weights(self, family: Family) -> None:
        """Each engine takes what it holds: the deepest its whole branch, the others their own layer, norm and head."""
        self._wake("weights")
        for exit, engine in self.engines.items():
            start = time.perf_counter()
            engine.load(branch_tensors(family, self._layouts[exit]))
            self._statistics.of(exit).sync_seconds += time.perf_counter() - start

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion a request, in order; each exit's requests run as one batch.

        Raises:
            ValueError: an exit without an engine, a prompt that leaves no room for a whole completion, a temperature
                that vLLM does not take.
        """
        for request in requests:
            self._check(request, sampling)
        everyones, first = self._group.gathered(requests)
        own = range(first, first + len(requests))
        arguments = [sampling_arguments(sampling, self.spec.end_token_ids, request.seed) for request in everyones]
        completions: dict[int, Completion] = {}
        self._wake("weights")
        self._wake("kv_cache")
        for exit, engine in self.engines.items():
            rows = [row for row, request in enumerate(everyones) if request.exit == exit]
            if not rows:
                continue
            start = time.perf_counter()
            outputs = engine.generate([everyones[row].prompt_ids for row in rows], [arguments[row] for row in rows])
            done = {row: completion_of(output) for row, output in zip(rows, outputs, strict=True) if row in own}
            statistics = self._statistics.of(exit)
            statistics.seconds += time.perf_counter() - start
            statistics.tokens += sum(len(completion.token_ids) for completion in done.values())
            completions |= done
            if arrived is not None and done:
                arrived([row - first for row in done], list(done.values()))
        self._sleep()
        return [completions[row] for row in own]

    def statistics(self) -> dict[str, ExitStatistics]:
        """Tokens are this rank's; ranks that share an engine spend the same seconds."""
        return self._statistics.take()

    def health(self) -> list[WorkerHealth]:
        """One worker an engine; it lives as long as this process does and it was not closed."""
        place = f"rank {ranks.rank()}, process {os.getpid()}"
        return [
            WorkerHealth(exit, f"vllm-{exit}", alive=not self._closed, detail="closed" if self._closed else place)
            for exit in self._layouts
        ]

    def close(self) -> None:
        """Ends the engines and gives their memory back; the default process group stays."""
        if self._closed:
            return
        self._closed = True
        # vLLM's allocator cannot free what sleeps: it would fail for the rest of the process.
        self._wake("weights")
        self._wake("kv_cache")
        with ExitStack() as pools:
            if self._sleeps:
                from ruyi_rl.rollout.gpu_worker import pools_held

                pools.enter_context(pools_held())
            for engine in self.engines.values():
                engine.shut_down()
            self.engines.clear()
        if not Engine.living:
            leave_groups()
        self._group.close()

    def _engine(self, exit: str, arguments: dict, share_trunk: bool) -> Engine:
        from ruyi_rl.rollout.shared_trunk import Trunk, sharing

        config, folder = self.spec.config, self.spec.folder / exit
        ranks.on_rank_zero(lambda: write_branch_config(config, exit, folder, self.spec.dtype, self.spec.end_token_ids))
        deepest = next(iter(self.engines.values()), None)
        trunk = Trunk(deepest.model, config.exits[exit], config.shared_heads) if deepest and share_trunk else None
        with sharing(trunk):
            return Engine(exit, arguments, self._beat)

    def _check(self, request: Request, sampling: Sampling) -> None:
        if request.exit not in self.engines:
            raise ValueError(f"no engine serves the exit {request.exit!r}; there are {', '.join(self.engines)}")
        if len(request.prompt_ids) + sampling.max_new_tokens > self.spec.max_model_len:
            raise ValueError(
                f"a prompt of {len(request.prompt_ids)} tokens and {sampling.max_new_tokens} after it are more than "
                f"the engines' {self.spec.max_model_len}"
            )

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            for engine in self.engines.values():
                engine.wake(tag)
            self._asleep.remove(tag)

    def _sleep(self) -> None:
        if self._sleeps:
            for engine in self.engines.values():
                engine.sleep()
            self._asleep = {"weights", "kv_cache"}


def synced_tensors(spec: RolloutSpec, exit: str, private: bool) -> list[BranchTensor]:
    """The tensors that an exit's engine is sent, in the order in which it likes to take them.

    Args:
        private: not those of the trunk, nor of a shared head.
    """
    layout = branch_layout(spec.config, exit, private)
    if private or not spec.config.tie_word_embeddings or torch.cuda.is_available():
        return layout
    # vLLM's CPU build packs the head's weights for itself, and packs anew only what it is sent.
    embeddings = next(tensor for tensor in layout if tensor.name == "model.embed_tokens.weight")
    return [*layout, replace(embeddings, name="lm_head.weight")]


def gpu_shares(options: RolloutOptions, spec: RolloutSpec, layouts: dict[str, list[BranchTensor]]) -> dict[str, float]:
    """Exit -> its engine's share of this rank's GPU; empty without one.

    Raises:
        Refusal: the weights alone need more than `gpu_memory_utilization`.
    """
    if not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    weights = [
        sum(math.prod(tensor.shape) for tensor in layout) * spec.dtype.itemsize // options.tensor_parallel
        for layout in layouts.values()
    ]
    return dict(zip(layouts, memory_shares(options.gpu_memory_utilization, device, weights), strict=True))


def completion_of(output: RequestOutput) -> Completion:
    """vLLM's output of one request as a completion; the end token and its log-prob are in it."""
    (sample,) = output.outputs
    tokens = list(sample.token_ids)
    log_probs = [position[token].logprob for position, token in zip(sample.logprobs, tokens, strict=True)]
    return Completion(tokens, finished=sample.finish_reason == "stop", log_probs=log_probs)
