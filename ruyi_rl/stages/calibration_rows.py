"""The rows that `stage=compress` reads: some to calibrate on, others held out, and those that recovery trains on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import calibration_form
from ruyi_rl.data.loading import load_data
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.batch import Prompts
from ruyi_rl.stages.joint import ROW_COLUMNS, limit_rows


@dataclass(frozen=True)
class CalibrationRows:
    """Disjoint rows, within `compress.max_length`."""

    calibration: list[list[int]]
    """Token ids of each row."""
    held_out: list[list[int]]
    """Likewise; their inputs are not what the factors are made for."""
    training: Dataset
    """All but the held-out ones, not tokenised."""
    lengths: Prompts
    """Of all rows, and how many were left out as too long."""


def calibration_rows(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> CalibrationRows:
    """Draws `compress.calibration_rows` rows by the run's seed, and half as many others.

    Where there are too few rows for that, two thirds of them calibrate and the others are held out.

    Raises:
        Refusal: rows that cannot be read, all of them too long, or fewer than two left.
    """
    options = config.compress
    rows = train_rows(config)
    rows = rows.select_columns([name for name in ROW_COLUMNS if name in rows.column_names])
    rows, lengths = limit_rows(rows, tokenizer, options.max_length, "compress.max_length")
    if len(rows) < 2:
        raise Refusal("compress.data", f"has {len(rows)} row of at most {options.max_length} tokens", "at least 2")
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    wanted = min(options.calibration_rows, len(rows) * 2 // 3)
    held_out = min(max(1, options.calibration_rows // 2), len(rows) - wanted)
    return CalibrationRows(
        calibration=token_rows(rows.select(order[:wanted]), tokenizer),
        held_out=token_rows(rows.select(order[wanted : wanted + held_out]), tokenizer),
        training=rows.select(sorted(order[:wanted] + order[wanted + held_out :])),
        lengths=lengths,
    )


def train_rows(config: RunConfig) -> Dataset:
    """`compress.data`, all of it, or the rows of `data` that are not held out.

    Raises:
        Refusal: rows that cannot be read.
    """
    data = config.compress.data
    if data is None:
        return load_data(config.data, config.seed, calibration_form(config.data)).train
    if data.holdout is None:
        data = replace(data, holdout=0)  # no pass rate is measured on these rows
    try:
        return load_data(data, config.seed, calibration_form(data)).train
    except Refusal as refusal:
        raise Refusal(f"compress.{refusal.key}", refusal.problem, refusal.allowed) from None


def token_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of whole rows, as the trainer sees them: `messages`, prompt and completion, or text and its end."""
    batch: Mapping[str, list[Any]] = rows[:]
    end = [tokenizer.eos_token_id]
    if "text" in batch:
        return [ids + end for ids in tokenizer(batch["text"])["input_ids"]]
    chats = batch.get("messages") or [
        prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"])
    ]
    if isinstance(chats[0], str):
        return [ids + end for ids in tokenizer(chats)["input_ids"]]
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]


def token_batches(rows: Sequence[Sequence[int]], size: int, padding: int) -> list[dict[str, torch.Tensor]]:
    """`input_ids` and `attention_mask` (rows, length) of at most `size` rows each, of like lengths, padded right."""
    longest_first = sorted(rows, key=len, reverse=True)
    batches = []
    for start in range(0, len(rows), size):
        part = longest_first[start : start + size]
        width = len(part[0])
        ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches
