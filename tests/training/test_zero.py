"""ZeRO-1, 2 and 3 on two gloo ranks, with accumulation and clipping, against plain torch on one process.

The reference is written with stock branches and torch.optim alone: no trainer, no TRL, no family forward.
"""

import functools
import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
import zero_run
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.weights import branch_sources
from tests.forked_ranks import run_ranks

ROWS_A_STEP = zero_run.SFT_ROWS * zero_run.CASES["whole"].accumulation * zero_run.RANKS
PROMPTS_A_STEP = zero_run.PROMPTS * zero_run.RANKS
TRAINED_PARTS = ("model.expansions", "model.norms", "lm_head")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
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
    return folder


def frozen_as(case: zero_run.Case, family: Family) -> Family:
    """The family with what the case does not train frozen, by names that are written out here once more."""
    parts = tuple(f"{part}.{list(family.exits).index(exit)}." for exit in case.exits for part in TRAINED_PARTS)
    for name, parameter in family.named_parameters():
        parameter.requires_grad_(case.train_only is None or name.startswith(parts))
    return family


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


@dataclass
class Descent:
    """What a run is compared with."""

    parameters: dict[str, torch.Tensor]
    norms: list[float] = field(default_factory=list)
    """Of each step's gradient, before it is clipped."""
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Name -> of each step."""


def descend(family, exits, losses) -> Descent:
    """SGD with clipping over a sequence of losses."""
    descent = Descent(
        {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in family.named_parameters()}
    )
    parameters = descent.parameters.values()
    for loss_of in losses:
        for parameter in parameters:
            parameter.grad = None
        branch_losses(descent.parameters, family, exits, partial(loss_of, descent.metrics)).backward()
        descent.norms.append(torch.nn.utils.clip_grad_norm_(parameters, zero_run.CLIP).item())
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= zero_run.LEARNING_RATE * parameter.grad
    return descent


def padded(rows, value, left=False):
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def plain_sft(family, order, exits=tuple(zero_run.WEIGHTS)):
    tokenizer, rows = byte_tokenizer(), zero_run.sft_rows()

    def loss_on(indices):
        prompts = [tokenizer(rows[i]["prompt"])["input_ids"] for i in indices]
        answers = [tokenizer(rows[i]["completion"] + tokenizer.eos_token)["input_ids"] for i in indices]
        ids = padded([p + a for p, a in zip(prompts, answers)], 0)
        labels = padded([[-100] * len(p) + a for p, a in zip(prompts, answers)], -100)
        mask = padded([[1] * len(p + a) for p, a in zip(prompts, answers)], 0)

        def loss_of(metrics, name, model):
            logits = model(ids, mask)[:, :-1].transpose(1, 2)
            return zero_run.WEIGHTS[name] * torch.nn.functional.cross_entropy(logits, labels[:, 1:])

        return loss_of

    return descend(family, exits, [loss_on(step) for step in order])


def plain_grpo(family, case: zero_run.Case) -> Descent:
    tokenizer, rows = byte_tokenizer(), zero_run.grpo_rows()
    reference = family.state_dict()

    def loss_on(indices):
        prompts = [tokenizer(rows[i]["prompt"])["input_ids"] for i in indices for _ in range(zero_run.SAMPLES)]

        def loss_of(metrics, name, model):
            answers = [
                zero_run.completion_of(name, prompt, index % zero_run.SAMPLES) for index, prompt in enumerate(prompts)
            ]
            rewards = torch.tensor(zero_run.reward(answers)).view(-1, zero_run.SAMPLES)
            spread = rewards.std(1, keepdim=True) + 1e-4
            advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten()
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
            kl = torch.exp(anchor - own) - (anchor - own) - 1
            ratio = torch.exp(own - own.detach())  # 1, but it carries the gradient, of the KL term as well
            token_loss = -ratio * advantages[:, None] + case.beta * ratio * kl
            loss = (token_loss * counted).sum() / counted.sum().clamp(min=1)
            metrics[f"{name}/loss"].append(loss.item())
            if case.beta:
                metrics[f"{name}/kl"].append(((kl * counted).sum() / counted.sum()).item())
            return loss * zero_run.WEIGHTS[name] / sum(zero_run.WEIGHTS[exit] for exit in case.exits)

        return loss_of

    steps = range(zero_run.STEPS)
    losses = [loss_on(range(s * PROMPTS_A_STEP, (s + 1) * PROMPTS_A_STEP)) for s in steps]
    return descend(family, case.exits, losses)


@pytest.fixture(scope="module")
def expected_grpo(start):
    """Descent of a case in float32, which neither its budget nor its accumulation nor its checkpointing changes."""

    @functools.cache
    def descent(case):
        folder = start / ("expanded" if case.train_only else "family")
        return plain_grpo(frozen_as(case, Family.from_pretrained(folder)), case)

    kept = ("exits", "beta", "truncated_out", "train_only")
    return lambda case: descent(zero_run.Case(**{name: getattr(case, name) for name in kept}))


def launch(kind: str, mode: str, folder: Path, family: Path, *cases: str) -> None:
    (folder / "family").symlink_to(family)
    run_ranks("zero_run:main", kind, mode, folder, cases, ranks=zero_run.RANKS, log=folder / "log")


def norms_of(folder: Path) -> list[float]:
    return [row["grad_norm"] for row in json.loads((folder / "logs.json").read_text())]


def assert_equal_updates(folder: Path, start: Path, expected: Descent) -> None:
    """Every parameter's update over the five steps, relative 1e-4, and the norms, where clipping hides no scale.

    Args:
        start: the family before.
    """
    got, before = (Family.from_pretrained(at).state_dict() for at in (folder / "trained", start))
    assert norms_of(folder) == pytest.approx(expected.norms, rel=1e-4)
    for name, parameter in expected.parameters.items():
        if parameter.grad is None:
            assert torch.equal(got[name], before[name]), name
            continue
        moved = parameter.detach() - before[name]
        error = (got[name] - before[name] - moved).norm() / moved.norm()
        assert error <= 1e-4, f"{name}: {error:.1e}"


def assert_equal_metrics(folder: Path, expected: Descent) -> None:
    logs = json.loads((folder / "logs.json").read_text())
    for name, values in expected.metrics.items():
        assert [row[name] for row in logs] == pytest.approx(values, rel=1e-3, abs=1e-6), name


def assert_uneven_packs(folder: Path) -> None:
    """The ranks ran equally many packs in each micro-batch, though one may have needed 1 and the other more."""
    needed, run = [], []
    for rank in range(zero_run.RANKS):
        packs = json.loads((folder / f"packs-{rank}.json").read_text())
        needed.append([need for need, _ in packs])
        run.append([count for _, count in packs])
    assert run[0] == run[1] == list(map(max, zip(*needed)))
    assert any(least == 1 < most for least, most in zip(*needed))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2", "zero3"])
def test_sft_equals_plain_torch(start, tmp_path, mode):
    launch("sft", mode, tmp_path, start / "family", "whole")
    # The order is the dataset's; ranks take alternate micro-batches of it, and it starts over after the last row.
    rows = len(zero_run.sft_rows())
    steps = [[(s * ROWS_A_STEP + i) % rows for i in range(ROWS_A_STEP)] for s in range(zero_run.STEPS)]
    expected = plain_sft(Family.from_pretrained(start / "family"), steps)
    assert_equal_updates(tmp_path / "whole", start / "family", expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, cases",
    [
        ("off", ["whole", "packs, checkpointing"]),
        ("zero1", ["whole", "packs"]),
        ("zero2", ["whole", "packs", "packs, bf16", "two exits"]),
        ("zero3", ["whole", "packs, checkpointing", "one exit"]),
    ],
)
def test_grpo_equals_plain_torch(start, tmp_path, expected_grpo, mode, cases):
    """Whole micro-batches, and packs of them whose number two ranks must agree on."""
    launch("grpo", mode, tmp_path, start / "family", *cases)
    for name in cases:
        case, expected = zero_run.CASES[name], expected_grpo(zero_run.CASES[name])
        if case.bf16:
            assert norms_of(tmp_path / name) == pytest.approx(expected.norms, rel=0.03)
        else:
            assert_equal_updates(tmp_path / name, start / "family", expected)
        if case.budget is not None:
            assert_uneven_packs(tmp_path / name)
        if case.accumulation == 1:  # a metric is the mean over micro-batches
            assert_equal_metrics(tmp_path / name, expected)


def assert_optimised_share(folder: Path, expected: Descent) -> None:
    """The ranks' optimisers hold the trained parameters and, but for ZeRO's padding, nothing else."""
    held = [json.loads((folder / f"optimised-{rank}.json").read_text()) for rank in range(zero_run.RANKS)]
    trained = sum(parameter.numel() for parameter in expected.parameters.values() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in expected.parameters.values())
    assert trained < 0.75 * whole
    if held[0] == trained:  # every rank has all of them
        held = held[:1]
    assert trained <= sum(held) < trained + 0.01 * whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2", "zero3"])
def test_expansion_alone_equals_plain_torch(start, tmp_path, expected_grpo, kind, mode):
    """Two expanded exits, one of them deeper than the trunk: the rest stays as it is bit by bit."""
    names = ["expansion", "expansion, checkpointing"] if mode == "zero3" else ["expansion"]
    launch(kind, mode, tmp_path, start / "expanded", *names)
    for name in names:
        case = zero_run.CASES[name]
        if kind == "sft":
            rows = len(zero_run.sft_rows())
            steps = [[(s * ROWS_A_STEP + i) % rows for i in range(ROWS_A_STEP)] for s in range(zero_run.STEPS)]
            family = frozen_as(case, Family.from_pretrained(start / "expanded"))
            expected = plain_sft(family, steps, case.exits)
        else:
            expected = expected_grpo(case)
            assert_uneven_packs(tmp_path / name)
        assert_equal_updates(tmp_path / name, start / "expanded", expected)
        assert_optimised_share(tmp_path / name, expected)
