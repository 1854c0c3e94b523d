"""`bench.py sft`: a joint step of FamilySFTTrainer beside one of TRL's SFTTrainer for each branch."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_arithmetic import Work, joint_sft, separate_sft
from bench_family import Shape
from bench_results import Equality
from bench_step import Learner, gradient_error, gradients

LENGTHS = ("4,256", "2,512")


@dataclass(frozen=True)
class Case:
    """Sizes of a step."""

    rows: int
    length: int
    """Tokens of a row at most."""
    uneven: bool
    """Whether rows have .1 to 1 of the length, rather than all of it."""

    @property
    def name(self) -> str:
        return f"{self.rows} rows of {self.length} {'uneven' if self.uneven else 'equal'}"

    def lengths(self) -> list[int]:
        draw = random.Random(self.name)
        return [
            max(2, round(draw.uniform(0.1, 1) * self.length)) if self.uneven else self.length for _ in range(self.rows)
        ]


TINY = Case(2, 8, uneven=False)


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    found = []
    for text in arguments.cases or LENGTHS:
        try:
            rows, length = map(int, text.split(","))
        except ValueError:
            raise SystemExit(f"--cases {text}: a case is rows,tokens, as in 4,256") from None
        if rows < 1 or length < 2:
            raise SystemExit(f"--cases {text}: at least 1 row of at least 2 tokens")
        found += [
            Case(rows, length, uneven)
            for uneven in (False, True)
            if arguments.lengths in ("both", "uneven" if uneven else "equal")
        ]
    return found


def batch_of(case: Case, shape: Shape, device: str) -> dict[str, torch.Tensor]:
    """Padded rows, every token in the loss."""
    counts = torch.tensor(case.lengths())
    mask = (torch.arange(int(counts.max())) < counts[:, None]).long()
    ids = torch.randint(shape.vocabulary, mask.shape, generator=torch.Generator().manual_seed(3)) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return {key: value.to(device) for key, value in batch.items()}


def learner_of(kind: type, model, batch: Mapping[str, torch.Tensor], device: str, folder: Path) -> Learner:
    """A trainer of a family, or TRL's own."""
    from datasets import Dataset
    from trl import SFTConfig

    from ruyi_rl.data.tokenizer import byte_tokenizer

    trainer = kind(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(batch["input_ids"]),
            learning_rate=1e-6,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"input_ids": [5, 6, 7]}]),
        processing_class=byte_tokenizer(),
    )
    return Learner.of(trainer, lambda: trainer.compute_loss(trainer.model, dict(batch)))


def ours(family, case: Case, batch, device: str, folder: Path) -> Learner:
    from ruyi_rl.training.sft_trainer import FamilySFTTrainer

    return learner_of(FamilySFTTrainer, family, batch, device, folder)


def theirs(branch, case: Case, batch, device: str, folder: Path) -> Learner:
    from trl import SFTTrainer

    branch.config._attn_implementation = "sdpa"
    return learner_of(SFTTrainer, branch, batch, device, folder)


def parts_of(batch, names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Every exit learns from all rows."""
    return dict.fromkeys(names, batch)


def compare(family, case: Case, us: Learner, them: Mapping[str, Learner], batch) -> Equality:
    """Log-probs of every token, and the gradients of the update."""
    from ruyi_rl.family.weights import branch_sources

    with torch.no_grad():
        scored, _ = us.trainer._forward(us.model, batch)
    expected, apart = {}, 0.0
    for name, learner in them.items():
        with torch.no_grad():
            found = learner.model(**batch, fused_lm_head=True)
        apart = max(apart, float((scored.log_probs[name] - found.log_probs[found.label_mask]).abs().max()))
        own = gradients(learner)
        sources = branch_sources(family.config, name, own)
        for stock, gradient in own.items():
            expected[sources[stock]] = expected.get(sources[stock], 0) + gradient
    return Equality(case.name, apart, *gradient_error(gradients(us), expected))


def work_of(case: Case, shape: Shape, device: str) -> tuple[Work, Work, Work]:
    """TRL's, as it runs here; TRL's, with heads on scored tokens only; and the least that a family needs."""
    rows = case.lengths()
    scored = sum(rows) - len(rows)
    return (
        separate_sft(shape, rows, scored, every_token_scored=device == "cpu"),
        separate_sft(shape, rows, scored, every_token_scored=False),
        joint_sft(shape, rows, scored),
    )


def scored_tokens(batch: Mapping[str, torch.Tensor], exits: int) -> int:
    """Of all exits."""
    return int(batch["attention_mask"][:, 1:].sum()) * exits


def wanted(case: Case) -> dict[str, tuple[float | None, float | None]]:
    """Phase -> least ratio and least share of the bound."""
    return {"whole step": (None, 0.85)}
