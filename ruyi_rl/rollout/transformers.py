"""Rollouts by transformers' generate on the family itself: no engine, no copy, no weights to send."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ruyi_rl.family.model import Family
from ruyi_rl.rollout.worker import Arrived, Completion, ExitStatistics, Request, Sampling, Statistics, WorkerHealth


class TransformersRollout:
    """Batched generate of a family at an exit.

    Greedy answers come with log-probs, of the model's distribution at temperature 1 as vLLM's do; drawn ones without.

    Args:
        family: generates until `update_weights` names another.
        pad_token_id: fills prompts on the left.
        end_token_ids: every token that ends a completion.
        batch_size: most sequences in one call of generate.
        beat: called with every token.
    """

    name = "transformers"
    runs_family = True

    def __init__(
        self,
        family: Family | None,
        pad_token_id: int,
        end_token_ids: Sequence[int],
        batch_size: int = 256,
        beat: Callable[[], None] = lambda: None,
    ):
        self.family, self.pad, self.ends, self.batch_size = family, pad_token_id, list(end_token_ids), batch_size
        self._beats = StoppingCriteriaList([BeatOfTokens(beat)])
        self._statistics = Statistics()

    def update_weights(self, family: Family) -> None:
        """This family's own weights are what generates from now on."""
        self.family = family

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """Complete left-padded batches of prompts of like length, exit by exit; the random state is left as it was."""
        completions: list[Completion | None] = [None] * len(requests)
        training = self.family.training
        self.family.eval()
        for exit in dict.fromkeys(request.exit for request in requests):
            start = time.monotonic()
            rows = [row for row, request in enumerate(requests) if request.exit == exit]
            rows.sort(key=lambda row: len(requests[row].prompt_ids))
            with self.family.at_exit(exit):
                for first in range(0, len(rows), self.batch_size):
                    batch = rows[first : first + self.batch_size]
                    done = self._complete([requests[row] for row in batch], sampling)
                    for row, completion in zip(batch, done, strict=True):
                        completions[row] = completion
                    if arrived is not None:
                        arrived(batch, done)
            statistics = self._statistics.of(exit)
            statistics.seconds += time.monotonic() - start
            statistics.tokens += sum(len(completions[row].token_ids) for row in rows)
        self.family.train(training)
        return completions

    def statistics(self) -> dict[str, ExitStatistics]:
        return self._statistics.take()

    def health(self) -> list[WorkerHealth]:
        """Always alive: it is this process."""
        exits = [] if self.family is None else list(self.family.exits)
        return [WorkerHealth(exit, "transformers", alive=True, detail="in this process") for exit in exits]

    def close(self) -> None:
        self.family = None

    def _complete(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        width, device = max(len(request.prompt_ids) for request in requests), self.family.device
        prompts = [list(request.prompt_ids) for request in requests]
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        config = GenerationConfig(
            # The draw is in the logits: see SeededDraw.
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=self.pad,
            eos_token_id=self.ends,
            disable_compile=True,
        )
        # transformers fills what `config` leaves open from the model's own (a published min_p, bad words …), and the
        # trainer's log-probs would then be of another distribution than the samples.
        declared, self.family.generation_config = self.family.generation_config, GenerationConfig()
        processors = drawing(sampling, [request.seed for request in requests], device)
        greedy = GreedyLogProbs() if sampling.temperature == 0 else None
        if greedy is not None:
            processors.append(greedy)
        try:
            tokens = self.family.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=self._beats,
            )
        finally:
            self.family.generation_config = declared
        completions = [cut_at_end(row, self.ends) for row in tokens[:, width:].tolist()]
        return completions if greedy is None else greedy.of(completions)


class BeatOfTokens(StoppingCriteria):
    """Calls `beat` with every token, and stops nothing."""

    def __init__(self, beat: Callable[[], None]):
        self.beat = beat

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """(batch,) bool, none of it true."""
        self.beat()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def drawing(sampling: Sampling, seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What turns logits into scores whose largest is the next token; nothing for greedy decoding.

    Args:
        seeds: (batch,) one a row.
    """
    processors = LogitsProcessorList()
    if sampling.temperature == 0:
        return processors
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    processors.append(SeededDraw(seeds, device))
    return processors


class SeededDraw(LogitsProcessor):
    """Makes the largest score a draw from softmax(scores), each row by its own generator.

    argmax(p / E) with E ~ Exp(1) is a draw from p (an exponential race; the Gumbel-max trick in logarithms). vLLM draws
    in this way too, so the same seed gives the same token there wherever rounding does not decide.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary) float logits -> the same with noise."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()


class GreedyLogProbs(LogitsProcessor):
    """Changes nothing, and takes down the log-probability of the likeliest token, which greedy decoding takes."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        """A step each: (batch,) float32."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary) logits -> the same."""
        logits = scores.float()
        self.steps.append(logits.amax(dim=-1) - logits.logsumexp(dim=-1))
        return scores

    def of(self, completions: Sequence[Completion]) -> list[Completion]:
        """The completions, one a row of the batch, with their log-probs."""
        rows = torch.stack(self.steps, dim=1).tolist()
        return [
            replace(completion, log_probs=row[: len(completion.token_ids)])
            for completion, row in zip(completions, rows, strict=True)
        ]


def end_token_ids(family: Family, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's and those that the family's generation config declares."""
    return declared_ends(family.generation_config, tokenizer)


def declared_ends(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token, then those of a generation config."""
    declared = config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def cut_at_end(token_ids: list[int], ends: Sequence[int]) -> Completion:
    """The tokens up to and with the first end token; masks go by length, never by `!= pad`."""
    for position, token in enumerate(token_ids):
        if token in ends:
            return Completion(token_ids[: position + 1], finished=True)
    return Completion(token_ids, finished=False)
