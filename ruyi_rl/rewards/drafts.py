"""A new reward from a template: its plugin, its config and its test. Importing this module imports no torch."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Collection
from pathlib import Path

import yaml

from ruyi_rl.refusal import Refusal, nearest

KINDS = ("plain", "async", "group")
"""The templates. Each is a folder; what it lacks is taken from that of `plain`."""
PLACEHOLDER = "my_reward"
"""The name that the templates bear."""
LONGEST = 40
"""Characters of a name: it heads columns, and names metrics."""

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def draft(name: str, kind: str) -> dict[str, str]:
    """The files of a new reward: path, from the working folder -> text; the plugin first, then config and test.

    Args:
        name: a name that `check_name` takes.
        kind: one of `KINDS`.
    """
    files = {
        f"rewards/{name}.py": "reward.py",
        f"conf/reward/{name}.yaml": "config.yaml",
        f"tests/test_{name}_reward.py": "test.py",
    }
    return {path: _template(kind, part).replace(PLACEHOLDER, name) for path, part in files.items()}


def check_name(name: str, kind: str, taken: Collection[str]) -> None:
    """Refuse a name that a plugin's function, its file and its choice cannot all bear.

    Args:
        taken: names of the rewards that there are.
    """
    if not name or name in (keyword.kwlist + keyword.softkwlist) or not _NAME.fullmatch(name):
        raise Refusal("name", f"{name!r} is no name for a Python function", _other(name, kind, taken))
    if len(name) > LONGEST:
        raise Refusal("name", f"{name!r} has {len(name)} characters", f"at most {LONGEST}")
    if name in taken:
        raise Refusal("name", f"a reward {name!r} is there already", _other(name, kind, taken))
    if hasattr(builtins, name):
        raise Refusal("name", f"{name!r} would hide Python's own {name} in that file", _other(name, kind, taken))
    if name in _used_names(kind):
        raise Refusal("name", f"{name!r} is what something else in that file is called", _other(name, kind, taken))
    # `reward=on` would be read as something other than a text.
    if yaml.safe_load(name) != name or name.lower() in ("null", "true", "false", "nan", "inf"):
        raise Refusal("name", f"{name!r} is a value of YAML's, no text", _other(name, kind, taken))


def _other(name: str, kind: str, taken: Collection[str]) -> str:
    """A remedy that names the nearest good name."""
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[: LONGEST - 3]
    for candidate in (word, f"my_{word}" if word else "mine", f"{word}_reward"):
        try:
            if candidate != name:
                check_name(candidate, kind, taken)
                return f"for instance name={candidate}"
        except Refusal:
            continue
    return "for instance name=mine"


def _used_names(kind: str) -> set[str]:
    tree = ast.parse(_template(kind, "reward.py"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def check_kind(kind: str) -> None:
    """Refuse a kind for which there is no template."""
    if kind not in KINDS:
        raise Refusal("new_reward.kind", f"no template {kind!r}", nearest(kind, KINDS))


def _template(kind: str, part: str) -> str:
    own = _TEMPLATES / kind / part
    return (own if own.is_file() else _TEMPLATES / "plain" / part).read_text(encoding="utf-8")
