"""Prompts against the length limit: too long ones are left out and counted, never cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ruyi_rl.refusal import Refusal

_BATCH = 1000


@dataclass(frozen=True)
class PromptReport:
    """Prompt lengths in tokens, chat template and generation prompt included."""

    longest: int
    """The longest prompt before any was left out."""
    limit: int
    """`data.max_prompt_tokens`."""
    kept: int
    """Rows kept."""
    dropped: int
    """Rows left out because their prompt is longer than the limit."""


def limit_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[Dataset, PromptReport]:
    """Leave out the rows whose prompt is longer than the limit; the others keep their order.

    Args:
        dataset: rows with a `prompt` column of chat messages or of text.
        tokenizer: the tokenizer that will render the prompts.
        max_prompt_tokens: the limit.
        chat_template_kwargs: passed on to the chat template, as the trainer does.

    Raises:
        Refusal: no row is left, or the prompts are messages and the tokenizer has no chat template.
    """
    lengths: list[int] = []
    for start in range(0, len(dataset), _BATCH):
        lengths += prompt_lengths(dataset[start : start + _BATCH]["prompt"], tokenizer, chat_template_kwargs)
    kept = [index for index, length in enumerate(lengths) if length <= max_prompt_tokens]
    report = PromptReport(max(lengths, default=0), max_prompt_tokens, len(kept), len(lengths) - len(kept))
    if lengths and not kept:
        problem = f"{max_prompt_tokens} leaves none of the {len(lengths)} prompts"
        shortest = f"the shortest has {min(lengths)} tokens, the longest {report.longest}"
        raise Refusal("data.max_prompt_tokens", problem, shortest)
    return (dataset.select(kept) if report.dropped else dataset), report


def prompt_lengths(
    prompts: list[Any], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
) -> list[int]:
    """Tokens of each prompt as generation sees it. Raises Refusal for messages without a chat template."""
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        return [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    if tokenizer.chat_template is None:
        raise Refusal(
            "model.base",
            "its tokenizer has no chat template, but the prompts are chat messages",
            "a base whose tokenizer has one, such as an instruct model's",
        )
    encoded = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
    )
    return [len(ids) for ids in encoded["input_ids"]]
