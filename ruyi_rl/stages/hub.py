"""`push_to`: exported folders as repositories of the hub. Importing this module imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ruyi_rl.failure import StageFailed
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.exported import MARK, Target

FAILURES = (httpx.HTTPError, OSError, RuntimeError)
"""What the hub's client raises where the network, the hub or the token fails: its own are among these."""

STALE = ["*.safetensors", "*.safetensors.index.json", "chat_template.jinja", "configuration_*.py", "modeling_*.py"]
"""Files of an export that, left there by an earlier one, would be loaded with or before those of the next."""


def repositories(push_to: str, targets: Sequence[Target]) -> dict[Target, str]:
    """Folder -> hub id: `push_to` itself for a single one, else with the exit's name after it.

    Raises:
        Refusal: an id that the hub would not take.
    """
    found = {target: push_to if len(targets) == 1 else f"{push_to}-{target.exit}" for target in targets}
    for name in found.values():
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            problem = str(error).partition("\n")[0]
            raise Refusal("push_to", f"{name!r} is no id of the hub: {problem}", "such as me/model") from None
    return found


def check_hub() -> None:
    """Refuse a push that can be known to fail without asking the hub."""
    if is_offline_mode():
        raise Refusal("push_to", "HF_HUB_OFFLINE keeps this process from the hub", "HF_HUB_OFFLINE=0, or no push_to")
    if get_token() is None:
        raise Refusal("push_to", "there is no token of the hub", "hf auth login, or the variable HF_TOKEN")


def hub() -> HfApi:
    """The hub's client, once the hub has taken the token.

    Raises:
        Refusal: it has not, or cannot be reached.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.whoami()
    except HfHubHTTPError as error:
        remedy = "one that may write, by hf auth login or the variable HF_TOKEN"
        raise Refusal("push_to", f"{api.endpoint} does not take the token ({_reason(error)})", remedy) from None
    except FAILURES as error:
        remedy = "a network, or no push_to: the same command with it uploads later what is exported now"
        raise Refusal("push_to", f"{api.endpoint} cannot be reached ({_reason(error)})", remedy) from None
    return api


def push(api: HfApi, target: Target, repository: str, message: str) -> str:
    """Uploads a folder, without the mark that names folders of this machine; returns the repository's address.

    What an earlier export has left there and would be loaded with this one is deleted.

    Raises:
        StageFailed: it could not be; what is exported is safe.
    """
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=target.folder,
            commit_message=message,
            ignore_patterns=[MARK],
            delete_patterns=STALE,
        )
    except FAILURES as error:
        raise StageFailed(
            f"{target.folder} was not uploaded to {repository}: {_reason(error)}\n"
            "The export is safe on disk: the same command uploads it without exporting it again"
        ) from None
    return str(made)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
