"""Small checks that several modules share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ruyi_rl.redaction import HIDDEN, is_secret
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.run_folder import flat


def require(key: str, value: Any, holds: bool, allowed: str) -> None:
    """Refuse `value` unless the condition holds."""
    if not holds:
        raise Refusal(key, f"{value!r} is not possible", allowed)


def require_choice(key: str, value: str | None, choices: Collection[str | None]) -> None:
    """Refuse a value that is none of the choices, with the nearest one."""
    if value not in choices:
        raise Refusal(key, f"{value!r} is unknown", nearest(str(value), [str(choice) for choice in choices if choice]))


def require_exits(key: str, names: Collection[str], exits: Mapping[str, int] | None) -> None:
    """Refuse exit names that are repeated or not the family's; `exits` is None where those are not known."""
    for name in names:
        if list(names).count(name) > 1:
            raise Refusal(key, f"exit {name!r} is named twice", "each exit once")
        if exits is not None and name not in exits:
            raise Refusal(key, f"{name!r} is none of the exits", "allowed: " + ", ".join(exits))


def check_secrets(config: Mapping[str, Any]) -> None:
    """Refuse what stands for a secret in a saved config or in a command that was printed; `config` as nested dicts."""
    for key, value in flat(config).items():
        if value == HIDDEN and is_secret(key, value):
            raise Refusal(key, f"{value!r} stands where a secret was hidden", "the secret itself")
