"""Quiets the libraries' chatter, so that the run's own lines can be read; their errors still show."""

import logging
import os
import warnings

from ruyi_rl.rollout.vllm_version import set_environment

CHATTY = ("accelerate", "datasets", "deepspeed", "DeepSpeed", "httpx", "matplotlib", "torch.distributed", "trl", "vllm")


def quiet_libraries() -> None:
    """Call it before the first heavy import: some of these are read only then."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    set_environment()  # TRL imports vLLM, which reads it then
    for module in ("transformers", "trl", "accelerate", "datasets", "deepspeed", "torch", "huggingface_hub", "vllm"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)

    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it finds that out by itself
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
