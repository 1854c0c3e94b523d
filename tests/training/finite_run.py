"""One rank of the runs of test_finite_updates_ranks.py and test_gradient_check.py."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import recovery_run
import torch
import zero_run
from safetensors.torch import load_file
from trl import GRPOConfig, SFTConfig

from ruyi_rl import ranks
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.failure import StageFailed
from ruyi_rl.family import Family
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.finite_updates import GuardedSteps
from ruyi_rl.training.gradient_check import GradientCheck
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.options import DeepSpeedOptions
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, release
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

STEPS, BAD = 3, 1
EXIT = "medium"


class InfiniteGradient(torch.autograd.Function):
    """Identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, math.inf)


FAULTS = {
    "loss": lambda values: values * math.nan,
    "value": lambda values: values + math.nan,
    "gradient": InfiniteGradient.apply,
}
"""What becomes of one exit's log-probs: the loss is NaN and its gradient too, the loss alone, the gradient alone."""


@dataclass(frozen=True)
class Case:
    kind: str
    fault: str
    bf16: bool = False
    clip: float = 0.5


def build(case: Case, folder: Path, config: dict | None, **changes):
    """A trainer of four optimiser steps of two micro-batches each; GRPO's take several backward passes."""
    arguments = {
        "output_dir": str(folder / "out"),
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": case.clip,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": case.bf16,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "deepspeed": config,
        **changes,
    }
    if case.kind == "recovery":
        return recovery_run.trainer(folder, {**arguments, "per_device_train_batch_size": 2}, lambda *args: None)
    common = {
        "model": Family.from_pretrained(folder / "family"),
        "processing_class": byte_tokenizer(),
    }
    if case.kind == "sft":
        args = SFTConfig(**arguments, per_device_train_batch_size=2, max_length=64)
        return FamilySFTTrainer(args=args, train_dataset=zero_run.sft_rows(), **common)
    args = GRPOConfig(
        **arguments,
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=16,
        shuffle_dataset=False,
    )
    return FamilyGRPOTrainer(
        args=args,
        reward_funcs=zero_run.reward,
        train_dataset=zero_run.grpo_rows(),
        rollout=zero_run.FixedRollout(),
        token_budget=1,
        **common,
    )


def fail_at(trainer, fault: str, steps: range, rank: int) -> None:
    """Injects the fault into the first forward pass of these steps, on one rank."""
    seen = set()

    def hook(module, args, output):
        step = trainer.state.global_step
        if not torch.is_grad_enabled() or step not in steps or step in seen or ranks.rank() != rank:
            return
        seen.add(step)
        if hasattr(output, "kl"):
            return type(output)(FAULTS[fault](output.kl), output.agrees)
        output.log_probs[EXIT] = FAULTS[fault](output.log_probs[EXIT])

    trainer.model.register_forward_hook(hook)


def leave_out(trainer, step: int) -> None:
    """The truth: neither a backward pass nor an optimiser's step in this step, and no guard anywhere."""
    for guard in (GuardedSteps, GradientCheck):
        trainer.remove_callback(guard)
    run, backward = trainer.training_step, None

    def training_step(*args, **kwargs):
        nonlocal backward
        backward = backward or trainer.accelerator.backward
        if trainer.state.global_step != step:
            return run(*args, **kwargs)
        trainer.accelerator.backward = lambda *args, **kwargs: None
        with torch.no_grad():
            loss = run(*args, **kwargs)
        trainer.accelerator.backward = backward
        return loss

    trainer.training_step = training_step


def tensors_of(trainer) -> Iterator[tuple[str, torch.Tensor]]:
    """Of this rank: weights as they are computed with, those that are optimised, and all that the optimiser holds."""
    for name, parameter in trainer.model.named_parameters():
        yield name, getattr(parameter, "ds_tensor", parameter)
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for group, values in enumerate(optimizer.param_groups):
        yield f"rate {group}", torch.tensor(values["lr"])
        for number, parameter in enumerate(values["params"]):
            yield f"optimised {group}.{number}", parameter
            for key, value in optimizer.state[parameter].items():
                yield f"{key} {group}.{number}", torch.as_tensor(value)


def ended(trainer) -> dict[str, torch.Tensor]:
    """What a whole training leaves."""
    trainer.train()
    found = {name: tensor.detach().clone() for name, tensor in tensors_of(trainer)}
    trainer.accelerator.wait_for_everyone()
    release(trainer)
    leave_deepspeed()
    return found


def main(mode: str, folder: Path, cases: list[Case]) -> None:
    """Each case against the truth, bit by bit."""
    config = deepspeed_config(DeepSpeedOptions(mode=mode), ranks.world_size())
    truths = {}
    for case in cases:
        truth = Case(case.kind, "none", case.bf16, case.clip)
        for wanted in (truth, case):
            if wanted in truths:
                continue
            enter_deepspeed(config)
            trainer = build(case, folder, config)
            trainer.announce = lambda line: None
            if wanted is truth:
                leave_out(trainer, BAD)
                truths[truth] = ended(trainer)
                continue
            fail_at(trainer, case.fault, range(BAD, BAD + 1), rank=ranks.world_size() - 1)
            found = ended(trainer)
        assert found.keys() == truths[truth].keys()
        different = [name for name, tensor in truths[truth].items() if not torch.equal(found[name], tensor)]
        assert not different, f"{mode} {case}: {different}"
        check_record(trainer, case)
    if ranks.world_size() > 1:
        torch.distributed.destroy_process_group()


def check_record(trainer, case: Case) -> None:
    """Counted, logged, and every rank's micro-batches kept, with what was not finite."""
    assert trainer.carried["skipped_updates"] == {"count": 1, "steps": []}
    rows = [row for row in trainer.state.log_history if "skipped_updates" in row]
    assert [row["skipped_updates"] for row in rows] == [int(step >= BAD) for step in range(STEPS)]
    assert all(math.isfinite(row["loss"]) for row in rows)
    path = Path(trainer.args.output_dir) / "skipped" / f"step-{BAD + 1}-rank-{ranks.rank()}.json"
    found = json.loads(path.read_text())
    exit = recovery_run.EXIT if case.kind == "recovery" else EXIT
    last = ranks.world_size() - 1
    assert found["losses"] == ({} if case.fault == "gradient" else {exit: [last]}), found["losses"]
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert bool(found["parameters"]) == (case.fault != "value") and names.issuperset(found["parameters"])
    assert len(found["micro_batches"]) == 2
    bad = ranks.rank() == last and case.fault != "gradient"
    assert [batch["losses"][exit] == "nan" for batch in found["micro_batches"]] == [bad, False]
    tensors = load_file(path.with_suffix(".safetensors"))
    assert tensors["batch.1.completion_ids" if case.kind == "grpo" else "batch.1.input_ids"].dtype == torch.int64
    text = found["micro_batches"][0]["rows"][0]
    assert "=" in (text["prompt"] if case.kind == "grpo" else text["text"])


def stopped(mode: str, folder: Path, sabotages: list[str]) -> None:
    """Every rank's training is stopped by the check, with the names; the messages go to files."""
    config = deepspeed_config(DeepSpeedOptions(mode=mode), ranks.world_size())
    for number, sabotage in enumerate(sabotages):
        enter_deepspeed(config)
        trainer = build(Case("sft", "none"), folder, config)
        SABOTAGES[sabotage](trainer)
        try:
            trainer.train()
        except StageFailed as error:
            (folder / f"{number}-rank-{ranks.rank()}").write_text(str(error))
        release(trainer)
        leave_deepspeed()
    torch.distributed.destroy_process_group()


def leave_out_an_exit(trainer) -> None:
    """On rank 1, in the second micro-batch of the first step."""
    compute, calls = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2 and ranks.rank() == 1:
            whole, trainer.exits = trainer.exits, [name for name in trainer.exits if name != EXIT]
            try:
                return compute(*args, **kwargs)
            finally:
                trainer.exits = whole
        return compute(*args, **kwargs)

    trainer.compute_loss = compute_loss


def unfreeze(trainer) -> None:
    """Something that no exit runs through."""
    trainer.model.register_parameter("forgotten", torch.nn.Parameter(torch.zeros(3)))


def cut_the_graph(trainer, number: int) -> None:
    """The forward passes are all there, but in one with gradients an exit's parameters get none."""
    passes = []

    def hook(module, args, output):
        if torch.is_grad_enabled():
            passes.append(1)
        if len(passes) == number:
            for column in (output.log_probs, output.entropy):
                column[EXIT] = column[EXIT].detach()

    trainer.model.register_forward_hook(hook)


SABOTAGES = {"exit": leave_out_an_exit, "unfrozen": unfreeze}
