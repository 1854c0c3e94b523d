"""A skipped update against the same training in which its backward passes and its optimiser's step never ran: weights,
moments and step counts bit by bit, on every rank."""

from pathlib import Path

import pytest
from finite_run import Case
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from tests.forked_ranks import run_ranks


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finite") / "family"
    tokenizer = byte_tokenizer()
    backbone = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    Family.from_scratch(backbone, {"small": 0, "medium": 1, "large": 3}).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, ranks, cases",
    [
        ("off", 1, [Case("sft", "value"), Case("grpo", "loss", clip=0.0), Case("recovery", "loss")]),
        ("off", 2, [Case("sft", "value", bf16=True), Case("sft", "gradient", bf16=True)]),
        ("zero2", 2, [Case("sft", "loss", bf16=True), Case("grpo", "gradient", clip=0.0)]),
        ("zero3", 2, [Case("sft", "value")]),
    ],
)
def test_a_skipped_update_has_never_been(family, tmp_path, mode, ranks, cases):
    (tmp_path / "family").symlink_to(family)
    run_ranks("finite_run:main", mode, tmp_path, cases, ranks=ranks, log=tmp_path / "log")
