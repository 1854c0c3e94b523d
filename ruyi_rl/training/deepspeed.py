"""DeepSpeed's configuration: which ZeRO stage, and everything else left to the trainer's own fields."""

from __future__ import annotations

from ruyi_rl.training.options import DEEPSPEED_MODES, ZERO_STAGES, DeepSpeedOptions


def deepspeed_config(options: DeepSpeedOptions, world_size: int) -> dict | None:
    """What goes to `TrainingArguments(deepspeed=…)`; None: no DeepSpeed.

    Batch sizes, clipping and precision are "auto", which transformers
    fills from the trainer's fields (DeepSpeed 0.19 would clip at norm 1.0 by itself); optimiser and scheduler are the
    trainer's. So they are where the CPU steps: torch's fused AdamW, the trainer's default, is as fast there as
    DeepSpeed's own (0.46 ns a parameter on one core, both), which would have to be compiled first.

    Args:
        options: the `deepspeed` group.
        world_size: ranks of the run.

    Raises:
        ValueError: an unknown mode.
    """
    mode = sharding_mode(options, world_size)
    if mode == "off":
        return None
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": ZERO_STAGES[mode],
            # From the model's width; DeepSpeed's own bucket holds half a billion elements, whatever the model.
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if mode == "zero3_offload":
        # Page-locked where there is a GPU, which is DeepSpeed's default.
        config["zero_optimization"] |= {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    return _merge(config, options.config)


def sharding_mode(options: DeepSpeedOptions, world_size: int) -> str:
    """`off` or a key of `ZERO_STAGES`: `auto` is off on one rank and ZeRO-2 on several.

    Raises:
        ValueError: an unknown mode.
    """
    if options.mode not in DEEPSPEED_MODES:
        raise ValueError(f"deepspeed.mode must be one of {', '.join(DEEPSPEED_MODES)}, not {options.mode!r}")
    if options.mode == "auto":
        return "zero2" if world_size > 1 else "off"
    return options.mode


def _merge(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
