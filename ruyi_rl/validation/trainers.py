"""The blocks of trainer fields: unknown fields, wrong types, fields that another key decides."""

from __future__ import annotations

import difflib
from typing import Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.validation.trainer_fields import CONFIG_SOURCES, TrainerField, trainer_fields

TRAINERS = {
    "pretrain.trainer": "sft",
    "pretrain.stage_two.trainer": "sft",
    "sft.trainer": "sft",
    "sft.stage_two.trainer": "sft",
    "expanded_pretrain.trainer": "sft",
    "expanded_pretrain.stage_two.trainer": "sft",
    "expanded_sft.trainer": "sft",
    "expanded_sft.stage_two.trainer": "sft",
    "compress.trainer": "sft",
    "grpo.trainer": "grpo",
}
"""Key of a block of trainer fields -> whose fields they are (see `trainer_fields`)."""

DECIDED_ELSEWHERE = {
    "output_dir": "use run_dir",
    "seed": "use seed",
    "data_seed": "use seed",
    "deepspeed": "use deepspeed=off|zero1|zero2|zero3|zero3_offload and deepspeed.config",
    "resume_from_checkpoint": "the same command resumes; fresh=true starts over",
    "local_rank": "the launcher sets it; see num_processes",
    "trust_remote_code": "a family is made of stock Qwens, which need no code of their own",
    "model_init_kwargs": "use model.dtype and model.attn_implementation",
}
GRPO_DECIDED_ELSEWHERE = {
    "scale_rewards": "use grpo.advantage.scale=group|exit|none|pooled",
    "use_vllm": "use rollout=auto|transformers|vllm|vllm_server",
    "vllm_mode": "use rollout=vllm|vllm_server",
    "vllm_model_impl": "each exit is a stock Qwen, which vLLM implements",
    "vllm_enable_sleep_mode": "use rollout.sleep",
    "vllm_structured_outputs_regex": "rollouts are drawn from the exits' own distribution",
    **dict.fromkeys(
        ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port"), "use rollout.addresses"
    ),
    "vllm_server_timeout": "use rollout.timeout and rollout.start_timeout",
    "vllm_gpu_memory_utilization": "use rollout.gpu_memory_utilization",
    "vllm_max_model_length": "use rollout.max_model_len",
    "vllm_tensor_parallel_size": "use rollout.tensor_parallel",
    "reward_weights": "use reward.functions.<name>.weight",
    "auto_find_batch_size": "a smaller batch would split the groups; lower per_device_train_batch_size",
}

COMPRESS_DECIDED_ELSEWHERE = {
    "max_steps": "use compress.recover_steps",
    "num_train_epochs": "use compress.recover_steps",
    "max_length": "use compress.max_length",
}
OF_BLOCK = {"grpo.trainer": GRPO_DECIDED_ELSEWHERE, "compress.trainer": COMPRESS_DECIDED_ELSEWHERE}
"""Block -> fields that it decides elsewhere, beside those of all."""


def check_trainer_fields(config: dict[str, Any]) -> None:
    """Check every block of trainer fields of a configuration.

    Args:
        config: the configuration as nested dicts.

    Raises:
        Refusal: a field that the trainer's configuration class does not have, a value of the wrong type or outside
            the choices that its source lists, a field that another key decides.
    """
    for block, trainer in TRAINERS.items():
        values: Any = config
        for name in block.split("."):
            values = values[name]
        elsewhere = DECIDED_ELSEWHERE | OF_BLOCK.get(block, {})
        class_name = CONFIG_SOURCES[trainer][1]
        for name, value in values.items():
            key = f"{block}.{name}"
            if name in elsewhere:
                raise Refusal(key, f"{value!r} cannot be set here", elsewhere[name])
            if name not in trainer_fields(trainer):
                close = difflib.get_close_matches(str(name), trainer_fields(trainer), n=1, cutoff=0.6)
                hint = f"did you mean '{block}.{close[0]}'?" if close else f"any field of TRL's {class_name}"
                raise Refusal(key, f"TRL's {class_name} has no such field", hint)
            _check_value(key, value, trainer_fields(trainer)[name])


def _check_value(key: str, value: Any, field: TrainerField) -> None:
    if isinstance(value, str) and value.startswith("${"):
        return
    if problem := field.problem(value):
        raise Refusal(key, *problem)
