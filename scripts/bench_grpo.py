"""`bench.py grpo`: a step of FamilyGRPOTrainer for all exits beside one of TRL's GRPOTrainer for each branch."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from bench_arithmetic import Work, separate_grpo, shared_grpo
from bench_family import Shape
from bench_results import Equality
from bench_step import Learner, gradient_error, gradients

CASES = ("256,64,8", "150,300,8", "32,512,4")
LEAST = MappingProxyType({(256, 64, 8): 3.0, (150, 300, 8): 1.35, (32, 512, 4): 1.0})
"""Prompt, completion, samples -> what the whole step's ratio should be at least."""


@dataclass(frozen=True)
class Case:
    """Sizes of a step."""

    prompt: int
    """Tokens of each prompt."""
    completion: int
    """Tokens of a completion at most."""
    samples: int
    uneven: bool
    """Whether completions have .1 to 1 of the length, rather than all of it."""
    prompts: int = 1
    budget: int | None = None
    """Tokens of one of our packs at most; None: the step is one pack."""

    @property
    def name(self) -> str:
        budget = "" if self.budget is None else f" budget {self.budget}"
        return self.sizes + budget

    @property
    def sizes(self) -> str:
        lengths = "uneven" if self.uneven else "equal"
        return f"P{self.prompt} R{self.completion} G{self.samples} x{self.prompts} {lengths}"

    def lengths(self, exits: list[str]) -> dict[str, list[list[int]]]:
        """Exit -> for each prompt the tokens of its completions."""
        draw = random.Random(self.sizes)

        def length() -> int:
            return max(1, round(draw.uniform(0.1, 1) * self.completion)) if self.uneven else self.completion

        return {name: [[length() for _ in range(self.samples)] for _ in range(self.prompts)] for name in exits}


TINY = Case(4, 4, 2, uneven=False)


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    found = []
    for text in arguments.cases or CASES:
        try:
            prompt, completion, samples = map(int, text.split(","))
        except ValueError:
            raise SystemExit(f"--cases {text}: a case is P,R,G, as in 256,64,8") from None
        if min(prompt, completion) < 1 or samples < 2:
            raise SystemExit(f"--cases {text}: P and R are at least 1, and G at least 2")
        found += [
            Case(prompt, completion, samples, uneven, arguments.prompts, arguments.token_budget)
            for uneven in (False, True)
            if arguments.lengths in ("both", "uneven" if uneven else "equal")
        ]
    return found


def batch_of(case: Case, shape: Shape, device: str) -> dict[str, torch.Tensor]:
    """What the family's trainer computes a loss from: for each prompt the rows of the deepest exit, then …"""
    exits = shape.deepest_first
    lengths = case.lengths(exits)
    rows = [
        (number, exit, length)
        for number in range(case.prompts)
        for exit, name in enumerate(exits)
        for length in lengths[name][number]
    ]
    generator = torch.Generator().manual_seed(3)
    numbers, owners, counts = (torch.tensor(column) for column in zip(*rows, strict=True))
    width = int(counts.max())
    mask = (torch.arange(width) < counts[:, None]).long()
    prompts = torch.randint(shape.vocabulary, (case.prompts, case.prompt), generator=generator)
    completions = torch.randint(shape.vocabulary, (len(rows), width), generator=generator)
    batch = {
        "prompt_ids": prompts[numbers],
        "prompt_mask": torch.ones(len(rows), case.prompt, dtype=torch.long),
        "completion_ids": completions * mask,
        "completion_mask": mask,
        "advantages": torch.randn(len(rows), generator=generator),
        "exit_ids": owners,
        "prompt_numbers": numbers,
        "exit_tokens": torch.zeros(len(exits)).index_add_(0, owners, counts.float()),
    }
    return {key: value.to(device) for key, value in batch.items()}


def parts_of(batch: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """What TRL's trainer of each branch gets: the rows of its exit."""
    columns = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    found = {}
    for exit, name in enumerate(names):
        found[name] = {column: batch[column][batch["exit_ids"] == exit] for column in columns}
        found[name]["num_items_in_batch"] = found[name]["completion_mask"].sum()
    return found


def no_reward(completions, **kwargs) -> list[float]:
    return [0.0] * len(completions)


def learner_of(
    kind: type, model, case: Case, batch: dict[str, torch.Tensor], device: str, folder: Path, **options
) -> Learner:
    """A trainer of a family, or TRL's own. The old log-probs are left in the batch, where a generation would leave
    them."""
    from datasets import Dataset
    from trl import GRPOConfig

    from ruyi_rl.data.tokenizer import byte_tokenizer

    trainer = kind(
        model=model,
        reward_funcs=no_reward,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(batch["prompt_ids"]),
            num_generations=case.samples,
            max_completion_length=case.completion,
            learning_rate=1e-6,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n}"} for n in range(case.prompts)]),
        processing_class=byte_tokenizer(),
        **options,
    )
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    # What the trainer of a family knows of the rows that it has generated.
    trainer._exit_ids, trainer._prompt_numbers = batch.get("exit_ids"), batch.get("prompt_numbers")

    @torch.no_grad()
    def old() -> torch.Tensor:
        found, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1], len(ids)
        )
        batch["old_per_token_logps"] = found
        return found

    return Learner.of(trainer, lambda: trainer._compute_loss(trainer.model, batch), old)


def ours(family, case: Case, batch, device: str, folder: Path) -> Learner:
    from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer

    return learner_of(FamilyGRPOTrainer, family, case, batch, device, folder, token_budget=case.budget)


def theirs(branch, case: Case, batch, device: str, folder: Path) -> Learner:
    from trl import GRPOTrainer

    branch.config._attn_implementation = "sdpa"
    return learner_of(GRPOTrainer, branch, case, batch, device, folder)


def compare(family, case: Case, us: Learner, them: Mapping[str, Learner], batch) -> Equality:
    """Log-probs of every token, and the gradients of the update."""
    from ruyi_rl.family.weights import branch_sources

    log_probs, expected, apart = us.old(), {}, 0.0
    for exit, (name, learner) in enumerate(them.items()):
        rows = batch["exit_ids"] == exit
        mask = batch["completion_mask"][rows]
        found = learner.old()
        apart = max(apart, float(((log_probs[rows] - found) * mask).abs().max()))
        own = gradients(learner)
        sources = branch_sources(family.config, name, own)
        for stock, gradient in own.items():
            # The family's loss is the mean of the exits'.
            expected[sources[stock]] = expected.get(sources[stock], 0) + gradient / len(them)
    return Equality(case.name, apart, *gradient_error(gradients(us), expected))


def work_of(case: Case, shape: Shape, device: str) -> tuple[Work, Work, Work]:
    """TRL's, as it runs here; TRL's, with heads on completions only; and the least that a family needs."""
    lengths = case.lengths(shape.deepest_first)
    prompts = [case.prompt] * case.prompts
    return (
        separate_grpo(shape, prompts, lengths, every_token_scored=device == "cpu"),
        separate_grpo(shape, prompts, lengths, every_token_scored=False),
        shared_grpo(shape, prompts, lengths),
    )


def scored_tokens(batch: Mapping[str, torch.Tensor], exits: int) -> int:
    """Of all exits."""
    return int(batch["completion_mask"].sum())


def wanted(case: Case) -> dict[str, tuple[float | None, float | None]]:
    """Phase -> least ratio and least share of the bound."""
    least = LEAST.get((case.prompt, case.completion, case.samples))
    return {"forward + backward": (None, 0.9), "whole step": (least, 0.8)}
