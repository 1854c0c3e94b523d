"""The tree of configuration keys, taken from the dataclasses, and the nearest key to one that does not exist."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation.trainer_fields import trainer_fields
from ruyi_rl.validation.trainers import TRAINERS


def check_key(path: str, value: Any = None) -> None:
    """Refuse a key that the schema does not have, at any depth; a dict's keys are checked as if written out.

    Raises:
        Refusal: naming the key and the nearest one that exists.
    """
    _walk(RunConfig, [], path.split("."), value)


@functools.cache
def key_paths() -> tuple[str, ...]:
    """Every key that can be typed, dotted, trainer fields included and open dicts not opened, sorted."""
    paths = _leaves(RunConfig, "")
    paths += [f"{block}.{name}" for block, trainer in TRAINERS.items() for name in trainer_fields(trainer)]
    return tuple(sorted(paths))


def nearest_key(path: str, siblings: list[str]) -> str:
    """The hint for an unknown key: a sibling spelt alike, else the same last word elsewhere, else the siblings.

    Args:
        path: the dotted key as typed, up to the part that is unknown.
        siblings: what may stand in place of its last part.
    """
    parent, _, word = path.rpartition(".")
    close = difflib.get_close_matches(word, siblings, n=1, cutoff=0.6)
    if close:
        return f"did you mean {'.'.join(filter(None, (parent, close[0])))!r}?"
    elsewhere = [key for key in key_paths() if key.rpartition(".")[2] == word]
    if elsewhere:
        shallow = sorted(elsewhere, key=lambda key: (key.count("."), len(key)))[:3]
        return "did you mean " + " or ".join(repr(key) for key in shallow) + "?"
    return "one of: " + ", ".join(sorted(siblings))


def absent_blocks(path: str) -> list[tuple[str, type]]:
    """The blocks on the way to `path` that need not exist yet, outermost first, each with its dataclass: those that may
    be null (`sft.stage_two.data`) and the entries of dictionaries of blocks (`reward.functions.mine`)."""
    hint: Any = RunConfig
    done: list[str] = []
    blocks = []
    for name in path.split("."):
        if dataclasses.is_dataclass(hint):
            declared = get_type_hints(hint)[name]
        elif get_origin(hint) is dict:
            declared = get_args(hint)[1]
        else:
            break
        done.append(name)
        inner = _not_none(declared)
        if dataclasses.is_dataclass(inner) and (inner is not declared or get_origin(hint) is dict):
            blocks.append((".".join(done), inner))
        hint = inner
    return blocks


def type_name(path: str) -> str:
    """The type of a key as its dataclass writes it, for messages: `int`, `str or null`, `list[str] or null`."""
    hint: Any = RunConfig
    for name in path.split("."):
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint).get(name, Any)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
    parts = get_args(hint) if _is_union(hint) else (hint,)
    return " or ".join(_spell(part) for part in parts)


def _spell(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "a block of " + ", ".join(get_type_hints(hint))
    return str(hint).replace("typing.", "") if get_args(hint) else getattr(hint, "__name__", str(hint))


def _walk(hint: Any, done: list[str], rest: list[str], value: Any) -> None:
    hint = _not_none(hint)
    if not rest:
        if isinstance(value, Mapping):
            for key, item in value.items():
                _walk(hint, done, [str(key)], item)
        return
    path = ".".join([*done, rest[0]])
    if dataclasses.is_dataclass(hint):
        fields = get_type_hints(hint)
        if rest[0] not in fields:
            raise Refusal(path, "no such key", nearest_key(path, list(fields)))
        _walk(fields[rest[0]], [*done, rest[0]], rest[1:], value)
    elif get_origin(hint) is dict:
        _walk(get_args(hint)[1], [*done, rest[0]], rest[1:], value)
    elif hint is not Any:
        block, name = ".".join(done[:-1]), ".".join([done[-1], *rest])
        raise Refusal(
            ".".join([*done, *rest]),
            f"{'.'.join(done)!r} holds one value of type {_spell(hint)}, no block",
            f"for a name with a dot write {block}={{{name}: …}}",
        )


def _leaves(hint: Any, prefix: str) -> list[str]:
    paths = []
    for name, kind in get_type_hints(hint).items():
        path, kind = f"{prefix}{name}", _not_none(kind)
        paths.append(path)
        if dataclasses.is_dataclass(kind):
            paths += _leaves(kind, f"{path}.")
    return paths


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _not_none(hint: Any) -> Any:
    if not _is_union(hint):
        return hint
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 else hint
