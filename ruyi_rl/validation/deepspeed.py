"""The `deepspeed` group: the mode, and config keys that the stage's trainer decides."""

from __future__ import annotations

from ruyi_rl.refusal import Refusal
from ruyi_rl.training.options import DEEPSPEED_MODES, ZERO_STAGES, DeepSpeedOptions
from ruyi_rl.validation.values import require_choice

SHARDED = f"deepspeed={'|'.join(ZERO_STAGES)}"
TRAINER_DECIDES = {
    "train_batch_size": "per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "optim, learning_rate, weight_decay and adam_*",
    "scheduler": "lr_scheduler_type and warmup_steps",
    "bf16": "bf16",
    "fp16": "fp16",
    "steps_per_print": "logging_steps",
}


def check_deepspeed(options: DeepSpeedOptions) -> None:
    """Refuse an unknown mode and keys that would contradict the trainer's."""
    require_choice("deepspeed.mode", options.mode, DEEPSPEED_MODES)
    for key, value in options.config.items():
        if key in TRAINER_DECIDES:
            raise Refusal(
                f"deepspeed.config.{key}",
                f"{value!r} would contradict the trainer's value",
                f"use sft.trainer / grpo.trainer: {TRAINER_DECIDES[key]}",
            )
    zero = options.config.get("zero_optimization")
    if isinstance(zero, dict) and "stage" in zero:
        raise Refusal(
            "deepspeed.config.zero_optimization.stage",
            f"{zero['stage']!r} cannot be set here",
            SHARDED,
        )
    if options.mode == "off" and options.config:
        raise Refusal("deepspeed.config", "is given, but deepspeed is off", SHARDED)
