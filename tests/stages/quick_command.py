"""The command without Hydra: composing a configuration takes longer than exporting a tiny family."""

import sys
from copy import deepcopy

import yaml

from ruyi_rl.failure import StageFailed
from ruyi_rl.refusal import Refusal
from ruyi_rl.tools import run_tool
from ruyi_rl.validation import validate


def run_tool_command(composed, *overrides):
    """The exit status of a tool; what it says goes where the command says it.

    Args:
        composed: a `RunConfig`, which stays as it is.
        overrides: `key=value`, of keys that are there.
    """
    config = deepcopy(composed)
    for override in overrides:
        key, _, value = override.partition("=")
        holder, (*blocks, name) = config, key.split(".")
        for block in blocks:
            holder = getattr(holder, block)
        assert hasattr(holder, name), key
        setattr(holder, name, yaml.safe_load(value))
    try:
        validate(config)
        run_tool(config)
    except (Refusal, StageFailed) as error:
        print(f"ruyi_rl: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refusal) else 1
    return 0
