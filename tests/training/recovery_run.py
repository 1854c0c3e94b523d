"""The family, the rows and the trainer of test_recovery_trainer.py, and one rank of its runs."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen3Config
from trl import SFTConfig

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.calibration import compressed_modules
from ruyi_rl.family.truncation import Factors
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.options import DeepSpeedOptions
from ruyi_rl.training.recovery_trainer import RecoveryTrainer
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, release
from ruyi_rl.training.taught_branch import TaughtBranch

EXIT = "small"
RANKS = 2
DESCENT = {
    "max_steps": 4,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
}


def family(kind: str = "qwen3") -> Family:
    """Two exits; the smaller one has two new blocks that do something."""
    tokenizer = byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,
    }
    backbone = Qwen2Config(**shape) if kind == "qwen2" else Qwen3Config(**shape, head_dim=16)
    made = Family.from_scratch(backbone, {EXIT: 0, "large": 2}).expand(EXIT, blocks=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def truncated(branch, names: Iterable[str], rank: int) -> dict[str, Factors]:
    """Plain SVD."""
    found = {}
    for name in names:
        u, s, v = torch.linalg.svd(branch.get_submodule(name).weight.detach(), full_matrices=False)
        found[name] = Factors((u * s)[:, :rank].contiguous(), v[:rank].contiguous())
    return found


def rows() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{a}+{b}=", "completion": "x" * (3 * a % 7) + f"{a + b}"} for a in range(8) for b in range(4)]
    )


def trainer(folder: Path, changes: dict, save) -> RecoveryTrainer:
    made = family()
    branch = made.branch(EXIT)
    factors = truncated(branch, compressed_modules(made.config, EXIT), rank=6)
    values = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "max_length": 64,
        **changes,
    }
    return RecoveryTrainer(
        model=TaughtBranch(branch, made.exits[EXIT] + 1, factors, torch.float32),
        args=SFTConfig(**values),
        train_dataset=rows(),
        processing_class=byte_tokenizer(),
        exit=EXIT,
        save=save,
    )


def main(mode: str, folder: Path) -> None:
    config = deepspeed_config(DeepSpeedOptions(mode=mode), RANKS)
    enter_deepspeed(config)
    changes = {**DESCENT, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "deepspeed": config}
    recovery = trainer(folder, changes, lambda out, factors: torch.save(factors, folder / "factors.pt"))
    recovery.train()
    recovery.save_model(str(folder))
    if recovery.is_world_process_zero():
        logs = [row for row in recovery.state.log_history if f"{EXIT}/loss" in row]
        (folder / "logs.json").write_text(json.dumps(logs, default=float))
    recovery.accelerator.wait_for_everyone()
    release(recovery)
    leave_deepspeed()
    torch.distributed.destroy_process_group()
