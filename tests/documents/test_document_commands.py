"""Every command and snippet of the documents, in the order of the pages, in one working folder: see rules.py."""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from tests.documents import rules
from tests.documents.pages import ROOT, Piece, file_name, pages, runnable

pytestmark = pytest.mark.slow

BASES = {"qwen3_40": (Qwen3Config, 40), "qwen3_28": (Qwen3Config, 28), "qwen2_28": (Qwen2Config, 28)}
"""Stand-in for a base model -> its kind and layers."""
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}


WRONG = (
    "python -m ruyi_rl stage=grpo grpo.trainer.learning_rat=1",
    "python -m ruyi_rl stage=grpo data=no_such_data",
    "python -m ruyi_rl stage=grpo model=ruyi2_14b model.exits={small: 3}",
    "python -m ruyi_rl -m stage=grpo seed=1,2 name=one_for_both",
    "python scripts/bench.py grpo --no-such-flag",
    "make no_such_target",
    "torchrun --no-such-flag -m ruyi_rl stage=grpo",
    "torchrun -m ruyi_rl stage=grpo no.such=key",
    "deepspeed --module ruyi_rl stage=nothing",
    "pip install ruyi_rl[no_such_extra]",
    "frobnicate --all",
)
"""Commands as a page might have them by mistake."""


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """A folder in which a reader types the commands, with what stands in for things that only a reader has."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    for name, (kind, layers) in BASES.items():
        shape = SHAPE if kind is Qwen3Config else {key: SHAPE[key] for key in SHAPE if key != "head_dim"}
        config = kind(vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=4096, **shape)
        AutoModelForCausalLM.from_config(config).save_pretrained(Path("stand_ins", name))
        tokenizer.save_pretrained(Path("stand_ins", name))
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 4, "max_position_embeddings": 4096}
    for folder in ("runs/first/sft", "runs/mine/sft/checkpoint-100"):
        Family.from_scratch(Qwen3Config(**shape), {"1.7B": 0, "8B": 1, "14B": 3}, seed=1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    rows = torch.tensor([tokenizer("1+2+3+4=")["input_ids"]])
    kept = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}
    Path("runs/mine/sft/skipped").mkdir()
    save_file(
        {f"batch.0.{name}": value.clone() for name, value in kept.items()},
        "runs/mine/sft/skipped/step-120-rank-1.safetensors",
    )
    solved = [{"question": f"{n} and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(40)]
    for split in ("train", "test"):
        write_rows(Path(f"stand_ins/gsm8k/{split}.jsonl"), solved)
    function = {"prompt": "def two():\n", "canonical_solution": "    return 2\n", "entry_point": "two"}
    function["test"] = "def check(candidate):\n    assert candidate() == 2\n"
    write_rows(Path("stand_ins/humaneval/HumanEval.jsonl"), [{"task_id": str(n), **function} for n in range(4)])
    write_rows(Path("prompts.jsonl"), [{"prompt": "1+2+3+4="}])
    handler, umask = signal.getsignal(signal.SIGTERM), os.umask(0o22)
    with rules.composing_once():
        yield tmp_path
    os.umask(umask)
    signal.signal(signal.SIGTERM, handler)


def test_every_command_and_snippet_runs(working_folder, monkeypatch, capfd):
    failures = []
    tokens = torch.tensor([[40, 41, 42, 43]])
    batches = [{"input_ids": tokens.repeat(8, 8)}]
    for page in pages():
        # A page's snippets go on from one another.
        names = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "batches": batches}
        for piece in runnable(page):
            gc.freeze()  # else each collection of a stage's end looks at all that was ever imported
            monkeypatch.setattr(sys, "stdin", rules.standard_input())
            try:
                run(piece, names)
            except (Exception, SystemExit) as error:  # noqa: BLE001  the others are to be run as well
                told = capfd.readouterr()
                failures.append(f"{piece}: {piece.text}\n{traceback.format_exc(limit=-3)}{error}\n{told.err[-1500:]}")
    assert not failures, "\n\n".join(failures)


def run(piece: Piece, names: dict[str, object]) -> None:
    if piece.language == "python":
        rules.snippet(piece, names)
    elif piece.language == "yaml":
        file = Path(file_name(piece))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(piece.text)
    elif piece.text.startswith("#!"):
        rules.batch_script(piece.text)
    else:
        rules.check(piece)


def test_a_wrong_command_is_found(working_folder, capfd):
    for command in WRONG:
        with pytest.raises((Exception, SystemExit)):
            rules.check(Piece("README.md", 1, "sh", command))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_no_page_is_without_commands_by_mistake():
    counts = {page.name: len(runnable(page)) for page in pages()}
    assert sum(counts.values()) > 60 and counts["tour.md"] > 10
    assert (ROOT / "docs" / "tour.md").is_file()
