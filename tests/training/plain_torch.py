"""What ZeRO's runs are compared with: stock branches and torch.optim on one process.

No trainer, no TRL, no family forward.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import zero_run
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.weights import branch_sources

TRAINED_PARTS = ("model.expansions", "model.norms", "lm_head")
CLIPPED = 0.2
"""GRPO's ε."""


def write_families(folder: Path) -> None:
    """The families that the runs begin with: `family`, and `expanded` with new blocks that do something."""
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
    family = Family.from_scratch(backbone, {"small": 0, "medium": 1, "large": 3})
    family.save_pretrained(folder / "family")
    family.expand("small", 4).expand("large", 1)
    torch.manual_seed(1)
    for parameter in family.model.expansions.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    family.save_pretrained(folder / "expanded")


def load(start: Path, case: zero_run.Case) -> Family:
    """The case's family with what it does not train frozen, by names that are written out here once more."""
    family = Family.from_pretrained(zero_run.family_folder(start, case))
    parts = tuple(f"{part}.{list(family.exits).index(exit)}." for exit in case.exits for part in TRAINED_PARTS)
    for name, parameter in family.named_parameters():
        parameter.requires_grad_(case.train_only is None or name.startswith(parts))
    return family


@dataclass
class Descent:
    """What a run is compared with."""

    parameters: dict[str, torch.Tensor]
    norms: list[float] = field(default_factory=list)
    """Of each step's gradient, before it is clipped."""
    rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=lambda: defaultdict(list))
    """Metric -> of each step, sums over the tokens of its rows and their numbers of tokens."""

    def note(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        """A metric of (rows, length) tokens that counts where `mask` is 1."""
        self.rows[name].append(((values * mask).sum(1).detach(), mask.sum(1)))

    def metric(self, name: str, pieces: int) -> list[float]:
        """Of each step: the mean over `pieces` pieces of its rows, in order, of the mean over their tokens."""
        return [
            (values.view(pieces, -1).sum(1) / counts.view(pieces, -1).sum(1)).mean().item()
            for values, counts in self.rows[name]
        ]


def branch_losses(parameters, family, exits, loss_of):
    """Σ_e loss_of(e, stock branch) over branches that read the one set of parameters."""
    total = 0.0
    for name in exits:
        stock = family.branch(name).train()
        sources = branch_sources(family.config, name, stock.state_dict())
        tensors = {stock_name: parameters[source] for stock_name, source in sources.items()}

        def model(ids, mask, stock=stock, tensors=tensors):
            return torch.func.functional_call(stock, tensors, (ids,), {"attention_mask": mask}).logits

        total = total + loss_of(name, model)
    return total


def descend(family: Family, case: zero_run.Case, losses) -> Descent:
    """SGD or AdamW, with clipping, over a sequence of losses."""
    descent = Descent(
        {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in family.named_parameters()}
    )
    trained = [parameter for parameter in descent.parameters.values() if parameter.requires_grad]
    if case.adamw:
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        rest = [parameter for parameter in trained if parameter.ndim == 1]
        groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, **zero_run.ADAMW, foreach=False)
    else:
        optimizer = torch.optim.SGD(trained, lr=zero_run.LEARNING_RATE)
    for loss_of in losses:
        optimizer.zero_grad()
        branch_losses(descent.parameters, family, case.exits, partial(loss_of, descent)).backward()
        descent.norms.append(torch.nn.utils.clip_grad_norm_(trained, zero_run.CLIP).item())
        optimizer.step()
    return descent


def padded(rows, value, left=False):
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def sft(start: Path, case: zero_run.Case) -> Descent:
    """Joint SFT. The order is the dataset's, and it starts over after the last row."""
    tokenizer, rows = byte_tokenizer(), zero_run.sft_rows()

    def loss_on(step):
        indices = [(step * zero_run.STEP + place) % len(rows) for place in range(zero_run.STEP)]
        prompts = [tokenizer(rows[i]["prompt"])["input_ids"] for i in indices]
        answers = [tokenizer(rows[i]["completion"] + tokenizer.eos_token)["input_ids"] for i in indices]
        ids = padded([p + a for p, a in zip(prompts, answers)], 0)
        labels = padded([[-100] * len(p) + a for p, a in zip(prompts, answers)], -100)
        mask = padded([[1] * len(p + a) for p, a in zip(prompts, answers)], 0)

        def loss_of(descent, name, model):
            logits = model(ids, mask)[:, :-1].transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="none")
            counted = labels[:, 1:] != -100
            descent.note(f"{name}/loss", losses, counted)
            return zero_run.WEIGHTS[name] * losses.sum() / counted.sum()

        return loss_of

    return descend(load(start, case), case, map(loss_on, range(case.steps)))


def grpo(start: Path, case: zero_run.Case) -> Descent:
    """GRPO with DAPO's normalisation, TRL's default, `case.iterations` steps on each batch of completions."""
    tokenizer, rows, family = byte_tokenizer(), zero_run.grpo_rows(), load(start, case)
    reference = family.state_dict()
    drawn = {}  # exit -> log-probs under the policy that the completions count as drawn from

    def loss_on(step):
        first = step // case.iterations * zero_run.STEP
        prompts = [
            tokenizer(rows[first + place]["prompt"])["input_ids"]
            for place in range(zero_run.STEP)
            for _ in range(zero_run.SAMPLES)
        ]

        def loss_of(descent, name, model):
            answers = [
                zero_run.completion_of(name, prompt, index % zero_run.SAMPLES) for index, prompt in enumerate(prompts)
            ]
            rewards = torch.tensor(zero_run.reward(answers)).view(-1, zero_run.SAMPLES)
            spread = rewards.std(1, keepdim=True) + 1e-4
            advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).view(-1, 1)
            left, right = padded(prompts, 0, left=True), padded(answers, 0)
            ids = torch.cat([left, right], 1)
            counted = padded([[1] * len(a) for a in answers], 0)
            mask = torch.cat([padded([[1] * len(p) for p in prompts], 0, left=True), counted], 1)
            if case.truncated_out:
                counted = counted * torch.tensor([[answer[-1] == zero_run.EOS] for answer in answers])

            def log_probs(logits):
                scored = torch.log_softmax(logits[:, left.shape[1] - 1 : -1], -1)
                return scored.gather(-1, right[..., None])[..., 0]

            stock = family.branch(name)
            stock.load_state_dict(
                {k: reference[v] for k, v in branch_sources(family.config, name, stock.state_dict()).items()}
            )
            with torch.no_grad():
                anchor = log_probs(stock(ids, attention_mask=mask).logits)
            own = log_probs(model(ids, mask))
            if step % case.iterations == 0:
                drawn[name] = own.detach()
            kl = torch.exp(anchor - own) - (anchor - own) - 1
            ratio = torch.exp(own - drawn[name])
            if case.beta:  # TRL weighs the term by the ratio as well
                kl = ratio * kl
            clipped = ratio.clamp(1 - CLIPPED, 1 + CLIPPED)
            token_loss = -torch.min(ratio * advantages, clipped * advantages) + case.beta * kl
            loss = (token_loss * counted).sum() / counted.sum().clamp(min=1)
            descent.note(f"{name}/loss", token_loss, counted)
            if case.beta:
                descent.note(f"{name}/kl", kl, counted)
            return loss * zero_run.WEIGHTS[name] / sum(zero_run.WEIGHTS[exit] for exit in case.exits)

        return loss_of

    return descend(family, case, map(loss_on, range(case.steps)))


def update_errors(folder: Path, start: Path, case: zero_run.Case, expected: Descent) -> dict[str, float]:
    """Parameter -> ‖its whole update - the expected one‖ / ‖the expected one‖; a frozen one's is 0 or infinite."""
    paths = (folder / "trained", zero_run.family_folder(start, case))
    got, before = (Family.from_pretrained(path).state_dict() for path in paths)
    errors = {}
    for name, parameter in expected.parameters.items():
        if parameter.grad is None:
            errors[name] = 0.0 if torch.equal(got[name], before[name]) else float("inf")
        else:
            moved = parameter.detach() - before[name]
            errors[name] = ((got[name] - before[name] - moved).norm() / moved.norm()).item()
    return errors


def loss_errors(folder: Path, kind: str, case: zero_run.Case, expected: Descent) -> dict[str, float]:
    """Metric -> its largest difference over the steps.

    SFT's loss is logged as a mean over micro-batches of means over tokens, GRPO's as the objective is, over all tokens.
    Its KL is compared where a step is one micro-batch.
    """
    logs = json.loads((folder / "logs.json").read_text())
    errors = {}
    for name in expected.rows:
        if name.endswith("/kl") and case.accumulation > 1:
            continue
        wanted = expected.metric(name, case.accumulation if kind == "sft" else 1)
        errors[name] = max(abs(row[name] - value) for row, value in zip(logs, wanted, strict=True))
    return errors
