"""A branch as the harness's model: whose questions are whose, and how far it is. Imports the harness and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.models.huggingface import HFLM
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ruyi_rl.rollout.engine import Engine, beating, enter_default_group, leave_groups, undisturbed
from ruyi_rl.rollout.engine_arguments import cpu_defaults
from ruyi_rl.rollout.engine_memory import cache_shape, default_cache_bytes
from ruyi_rl.rollout.vllm_version import installed_version

KINDS = {"loglikelihood": "log-likelihoods", "loglikelihood_rolling": "perplexities", "generate_until": "answers"}
"""Kind of request -> what it gives, for people."""

CPU_LENGTH = 4096
"""Tokens of a sequence that an engine on a CPU takes, unless `eval.harness.model` says otherwise."""
GPU_SHARE = 0.8
"""Share of a GPU that an engine takes, unless told otherwise: this process keeps a context of its own there."""
LARGEST_BATCH = 2**30
"""All requests at once: as `auto`, but without vLLM's bar."""


@dataclass(frozen=True)
class Sharing:
    """The ranks that share out the questions."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """Their process group; None where there is one rank."""

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's `value` (picklable), in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values


class Reporter:
    """Takes the place of the harness's cache, which is told of every answered request.

    Args:
        beat: called whenever generation or scoring moves on.
        line: makes a context with `update(done)` of a description and a total.
    """

    def __init__(self, beat: Callable[[], None], line: Callable[[str, int], Any]):
        self.beat, self.line = beat, line
        self._line, self._done = None, 0

    def add_partial(self, kind: str, request: Any, result: Any) -> None:
        """One request is answered."""
        self._done += 1
        self.beat()
        if self._line is not None:
            self._line.update(self._done)

    @contextmanager
    def of(self, kind: str, total: int) -> Iterator[None]:
        """Inside, `total` requests of a kind are answered."""
        self._done = 0
        with self.line(KINDS[kind], total) as self._line:
            yield
        self._line = None


class Told:
    """Mixed into one of the harness's model classes: its requests are reported, without bars of its own."""

    reporter: Reporter

    def set_cache_hook(self, cache_hook: Any) -> None:
        """The reporter stays in its place."""

    def report_to(self, reporter: Reporter) -> None:
        self.reporter = self.cache_hook = reporter

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
        with self.reporter.of("loglikelihood", len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list:
        with self.reporter.of("loglikelihood_rolling", len(requests)):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list:
        with self.reporter.of("generate_until", len(requests)):
            return super().generate_until(requests, disable_tqdm=True)


class BranchLM(Told, HFLM):
    """A branch in this process; each rank answers its share of the questions with a copy of its own.

    Args:
        model: a stock Qwen, on its device.
        tokenizer: the family's.
        sharing: which share is this rank's.
        reporter: see `Reporter`.
        arguments: further ones of `HFLM`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sharing: Sharing,
        reporter: Reporter,
        **arguments: Any,
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **arguments)
        self.sharing = sharing
        self._rank, self._world_size = sharing.rank, sharing.world_size
        self.report_to(reporter)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.sharing.gathered(tensor.cpu()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        values = self.sharing.gathered(obj)
        return values if self.rank == dst else None

    def barrier(self) -> None:
        self.sharing.gathered(None)

    def _model_call(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        self.reporter.beat()
        return super()._model_call(*arguments, **keywords)

    def _model_generate(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        beats = LogitsProcessorList([BeatingProcessor(self.reporter.beat)])
        return super()._model_generate(*arguments, logits_processor=beats, **keywords)


class BeatingProcessor(LogitsProcessor):
    """Changes no logit; beats with every token."""

    def __init__(self, beat: Callable[[], None]):
        self.beat = beat

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.beat()
        return scores


def _cpu_arguments(config: PreTrainedConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's on a CPU: prompts in one piece, and a cache no larger than its sequences need."""
    named = next((name for name in ("max_model_len", "max_length") if name in given), None)
    length = given[named] if named else min(config.max_position_embeddings, CPU_LENGTH)
    defaults = cpu_defaults(length) | ({} if named else {"max_model_len": length})
    shape = cache_shape(config, 4, defaults["block_size"])  # float32, or half of it stays empty
    return {**defaults, "kv_cache_memory_bytes": default_cache_bytes(shape, defaults["max_num_seqs"], length)}


@contextmanager
def vllm_branch(
    folder: Path, exit: str, config: PreTrainedConfig, reporter: Reporter, seed: int, arguments: dict[str, Any]
) -> Iterator[Any]:
    """The harness's vLLM model of a saved branch, with an engine in this process that ends with the context.

    Args:
        folder: a stock Qwen with its tokenizer.
        exit: its name, for messages.
        config: the stock Qwen's.
        arguments: further ones of the harness's `VLLM` and of the engine, which replace the defaults.

    Raises:
        Refusal: the engine does not fit into its memory.
    """
    from vllm.platforms import current_platform

    # The harness asks for the version of the package `vllm`; that of the build for CPUs has another name, by which vLLM
    # knows its platform: it has to look before.
    on_gpu, find = current_platform.device_type == "cuda", metadata.version
    _, version = installed_version()
    with patch.object(metadata, "version", lambda name: version if name.startswith("vllm") else find(name)):
        from lm_eval.models import vllm_causallms

    engines: list[Engine] = []

    def made(**given: Any) -> Any:
        engines.append(Engine(exit, given, reporter.beat))
        return engines[0].llm

    class EngineLM(Told, vllm_causallms.VLLM):
        """Leaves this process as it was, and beats with every step of the engine."""

        def _model_generate(self, *arguments: Any, **keywords: Any) -> Any:
            with undisturbed(engines[0].eager, engines[0].threads), beating(self.model.llm_engine, reporter.beat):
                return super()._model_generate(*arguments, **keywords)

    own = {"gpu_memory_utilization": GPU_SHARE} if on_gpu else _cpu_arguments(config, arguments)
    defaults = {"pretrained": str(folder), "seed": seed, "disable_log_stats": True, "use_tqdm_on_load": False}
    # By itself vLLM halves the precision of a float32 model.
    defaults["dtype"] = str(config.dtype).removeprefix("torch.")
    enter_default_group()
    try:
        with patch.object(vllm_causallms, "LLM", made):
            model = EngineLM(**{**defaults, **own, **arguments})
        model.batch_size = LARGEST_BATCH
        model.report_to(reporter)
        yield model
    finally:
        model = None
        for engine in engines:
            engine.shut_down()
        leave_groups()
