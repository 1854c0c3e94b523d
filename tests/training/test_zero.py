"""ZeRO-1, 2 and 3 on two gloo ranks, with accumulation and clipping, against plain torch on one process.

The reference is written with stock branches and torch.optim alone: no trainer, no TRL, no family forward.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zero_run
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.weights import branch_sources

ROWS_A_STEP = 4 * zero_run.ACCUMULATION * zero_run.RANKS
PROMPTS_A_STEP = zero_run.ACCUMULATION * zero_run.RANKS


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
    Family.from_scratch(backbone, {"small": 0, "medium": 1, "large": 3}).save_pretrained(folder / "family")
    return folder


def branch_losses(parameters, family, loss_of):
    """Σ_e loss_of(e, stock branch) over branches that read the one set of parameters."""
    total = 0.0
    for name in family.exits:
        stock = family.branch(name).train()
        sources = branch_sources(family.config, name, stock.state_dict())
        tensors = {stock_name: parameters[source] for stock_name, source in sources.items()}

        def model(ids, mask, stock=stock, tensors=tensors):
            return torch.func.functional_call(stock, tensors, (ids,), {"attention_mask": mask}).logits

        total = total + loss_of(name, model)
    return total


def descend(family, losses) -> tuple[dict[str, torch.Tensor], list[float]]:
    """SGD with clipping over a sequence of losses: the parameters, and the gradient norm before each clipping."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in family.named_parameters()}
    norms = []
    for loss_of in losses:
        for parameter in parameters.values():
            parameter.grad = None
        branch_losses(parameters, family, loss_of).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), zero_run.CLIP).item())
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= zero_run.LEARNING_RATE * parameter.grad
    return parameters, norms


def padded(rows, value, left=False):
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def plain_sft(family, order):
    tokenizer, rows = byte_tokenizer(), zero_run.sft_rows()

    def loss_on(indices):
        prompts = [tokenizer(rows[i]["prompt"])["input_ids"] for i in indices]
        answers = [tokenizer(rows[i]["completion"] + tokenizer.eos_token)["input_ids"] for i in indices]
        ids = padded([p + a for p, a in zip(prompts, answers)], 0)
        labels = padded([[-100] * len(p) + a for p, a in zip(prompts, answers)], -100)
        mask = padded([[1] * len(p + a) for p, a in zip(prompts, answers)], 0)

        def loss_of(name, model):
            logits = model(ids, mask)[:, :-1].transpose(1, 2)
            return zero_run.WEIGHTS[name] * torch.nn.functional.cross_entropy(logits, labels[:, 1:])

        return loss_of

    return descend(family, [loss_on(step) for step in order])


def plain_grpo(family):
    tokenizer, rows = byte_tokenizer(), zero_run.grpo_rows()
    reference = family.state_dict()

    def loss_on(indices):
        prompts = [tokenizer(rows[i]["prompt"])["input_ids"] for i in indices for _ in range(zero_run.SAMPLES)]

        def loss_of(name, model):
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
            token_loss = -ratio * advantages[:, None] + 0.04 * ratio * kl
            share = zero_run.WEIGHTS[name] / sum(zero_run.WEIGHTS.values())
            return share * (token_loss * counted).sum() / counted.sum()

        return loss_of

    steps = range(zero_run.STEPS)
    return descend(family, [loss_on(range(s * PROMPTS_A_STEP, (s + 1) * PROMPTS_A_STEP)) for s in steps])


def launch(kind: str, mode: str, folder: Path, ranks: int):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(here / "zero_run.py"), kind, mode, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Family.from_pretrained(folder / "trained").state_dict(), json.loads((folder / "norms.json").read_text())


def assert_equal_updates(got, expected, before) -> None:
    """Every parameter's update over the five steps, relative 1e-4, and the norms, where clipping hides no scale."""
    (got, norms), (expected, expected_norms) = got, expected
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    for name, parameter in expected.items():
        moved = parameter.detach() - before[name]
        error = (got[name] - before[name] - moved).norm() / moved.norm()
        assert error <= 1e-4, f"{name}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2", "zero3"])
def test_sft_equals_plain_torch(start, tmp_path, mode):
    family = Family.from_pretrained(start / "family")
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    (tmp_path / "family").symlink_to(start / "family")
    got = launch("sft", mode, tmp_path, ranks=2)
    # The order is the dataset's; ranks take alternate micro-batches of it, and it starts over after the last row.
    rows = len(zero_run.sft_rows())
    steps = [[(s * ROWS_A_STEP + i) % rows for i in range(ROWS_A_STEP)] for s in range(zero_run.STEPS)]
    expected = plain_sft(family, steps)
    assert_equal_updates(got, expected, before)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2", "zero3"])
def test_grpo_equals_plain_torch(start, tmp_path, mode):
    family = Family.from_pretrained(start / "family")
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    (tmp_path / "family").symlink_to(start / "family")
    assert_equal_updates(launch("grpo", mode, tmp_path, ranks=2), plain_grpo(family), before)
