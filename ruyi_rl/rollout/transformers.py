"""Rollouts by transformers' generate on the family itself: no engine, no copy, no weights to send."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ruyi_rl.family.model import Family
from ruyi_rl.rollout.worker import Completion, Sampling


class TransformersRollout:
    """Batched generate of a family at an exit."""

    name = "transformers"
    runs_family = True

    def __init__(self, family: Family, tokenizer: PreTrainedTokenizerBase, batch_size: int = 256):
        self.family, self.tokenizer, self.batch_size = family, tokenizer, batch_size

    def generate(self, exit: str, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """Complete left-padded batches of prompts of like length; `sampling.seed` decides the draws.

        The global random state is left as it was. Draws depend on the batch size: a seed a request needs an engine.
        """
        order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
        completions: list[Completion | None] = [None] * len(prompt_ids)
        training = self.family.training
        self.family.eval()
        device = self.family.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.family.at_exit(exit):
            torch.manual_seed(sampling.seed)
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                for row, completion in zip(rows, self._complete([prompt_ids[row] for row in rows], sampling)):
                    completions[row] = completion
        self.family.train(training)
        return completions

    def update_weights(self) -> None:
        """The family's own weights are what generates."""

    def close(self) -> None:
        """Nothing is held besides the family."""

    def _complete(self, prompts: list[Sequence[int]], sampling: Sampling) -> list[Completion]:
        width, device = max(map(len, prompts)), self.family.device
        pad, ends = self.tokenizer.pad_token_id, end_token_ids(self.family, self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        greedy = sampling.temperature == 0
        drawing = (
            {}
            if greedy
            else {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
            }
        )
        config = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=pad,
            eos_token_id=ends,
            disable_compile=True,
            **drawing,
        )
        # transformers fills what `config` leaves open from the model's own (a published min_p, bad words …), and the
        # trainer's log-probs would then be of another distribution than the samples.
        declared, self.family.generation_config = self.family.generation_config, GenerationConfig()
        try:
            tokens = self.family.generate(ids, attention_mask=mask, generation_config=config)[:, width:]
        finally:
            self.family.generation_config = declared
        return [cut_at_end(row, ends) for row in tokens.tolist()]


def end_token_ids(family: Family, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's and those that the family's generation config declares."""
    declared = family.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def cut_at_end(token_ids: list[int], ends: Sequence[int]) -> Completion:
    """The tokens up to and with the first end token; masks go by length, never by `!= pad`."""
    for position, token in enumerate(token_ids):
        if token in ends:
            return Completion(token_ids[: position + 1], finished=True)
    return Completion(token_ids, finished=False)
