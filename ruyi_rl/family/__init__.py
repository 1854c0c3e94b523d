"""The family: one trunk, several exits, each branch a stock Qwen.

The names below are imported on first use, so that reading the options of this package costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruyi_rl.family.config import FamilyConfig
    from ruyi_rl.family.model import Family
    from ruyi_rl.family.output import FamilyOutput

_HOMES = {"Family": "model", "FamilyConfig": "config", "FamilyOutput": "output"}
__all__ = ["Family", "FamilyConfig", "FamilyOutput"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
