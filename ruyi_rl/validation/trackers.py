"""The trackers that a training logs to (`report_to`): known, installed, logged in. Imports no torch."""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.validation.trainers import TRAINERS

MODULES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
}
"""Tracker that transformers knows -> the module that it needs."""
OURS = ("tensorboard", "wandb", "trackio")
"""Those of the extra `trackers`; TensorBoard is always there."""
SERVER = "https://api.wandb.ai"
SILENT = ("offline", "dryrun", "disabled")
"""Modes of Weights & Biases that need no account."""


def check_stage_trackers(config: RunConfig, stage: str) -> None:
    """Refuse a tracker of a stage's trainings that cannot log."""
    for block in TRAINERS:
        first, *rest = block.split(".")
        if first == stage:
            check_trackers(block, reduce(getattr, rest, getattr(config, stage)))


def check_trackers(block: str, trainer: Mapping[str, Any]) -> None:
    """Refuse a tracker that cannot log.

    Args:
        block: key of the trainer fields, such as `grpo.trainer`.
        trainer: the fields.

    Raises:
        Refusal: it is not known, not installed, or needs an account that is not logged in.
    """
    key, given = f"{block}.report_to", trainer.get("report_to")
    names = [given] if isinstance(given, str) else list(given or [])
    if names in (["none"], []):
        return
    if names == ["all"]:
        names = [name for name, module in MODULES.items() if find_spec(module)]
    for name in names:
        if name not in MODULES:
            raise Refusal(key, f"no tracker {name!r}", nearest(str(name), [*MODULES, "all", "none"]))
        if find_spec(MODULES[name]) is None:
            package = "'ruyi_rl[trackers]'" if name in OURS else MODULES[name]
            raise Refusal(key, f"{name!r} is not installed", f"pip install {package}; or report_to=none")
    if ranks.rank() != 0:
        return  # rank 0 alone logs, and its machine alone needs an account
    if "wandb" in names and wandb_mode() == "online" and not has_wandb_account():
        problem = "Weights & Biases knows no account on this machine"
        raise Refusal(key, problem, "wandb login, the variable WANDB_API_KEY, or WANDB_MODE=offline")
    space = trainer.get("trackio_space_id") or os.environ.get("TRACKIO_SPACE_ID")
    if "trackio" in names and space and not has_hub_account():
        problem = f"the space {space} needs an account of the Hugging Face hub, and none is known on this machine"
        raise Refusal(key, problem, "hf auth login, the variable HF_TOKEN, or no trackio_space_id: a database here")


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`, as the environment or, without a word from it, the settings' files say."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or _wandb_settings().get("mode", "online")
    return "offline" if mode == "dryrun" else mode if mode in SILENT else "online"


def has_wandb_account() -> bool:
    """Whether Weights & Biases finds a key without asking for it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = os.environ.get("WANDB_BASE_URL") or _wandb_settings().get("base_url", SERVER)
    given = os.environ.get("NETRC")
    files = [Path(given)] if given else [Path.home() / name for name in (".netrc", "_netrc")]
    return any(_knows(file, urlsplit(server).netloc) for file in files)


def has_hub_account() -> bool:
    """Whether a token of the Hugging Face hub is known."""
    from huggingface_hub import get_token

    return get_token() is not None


def _wandb_settings() -> dict[str, str]:
    """Those of the user, and over them those of the working folder (`wandb offline` writes these)."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    local = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    parser = configparser.ConfigParser()
    try:
        parser.read([home / "settings", local / "settings"])
    except configparser.Error:
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _knows(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
