"""Overrides from the command line: `group=choice` is Hydra's, `key=value` is set on the composed configuration.

Hydra closes every dictionary, so that a new key of an open one (`grpo.trainer.learning_rate`) would need a `+`, and it
merges dictionaries, so that `model.exits={…}` would add to the exits it should replace. Hence values are set here.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ruyi_rl.cli.schema import absent_blocks, check_key, type_name
from ruyi_rl.pipeline import ORDER, TOOLS
from ruyi_rl.refusal import Refusal

REPLACED = ("model.exits",)
"""Dictionaries that a `key={…}` replaces; others are merged into, as everywhere in Hydra."""
SEVERAL = ("benchmark",)
"""Groups of which several choices stand together."""
TEXTS = ("generate.prompt", "generate.system")
"""Keys whose value is prose, taken as it stands: to Hydra's grammar a comma would begin a sweep, and `=`, `:` or a
bracket be an error."""


@dataclass
class Overrides:
    """A command's overrides, sorted by who applies them."""

    groups: list[str] = field(default_factory=list)
    """`group=choice`, for Hydra's compose."""
    values: list[Override] = field(default_factory=list)
    """`key=value`, parsed, for `apply_values`."""


def parse_overrides(lines: list[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar.

    Raises:
        Refusal: a line that the grammar does not take.
    """
    parser = OverridesParser.create()
    parsed = []
    for line in lines:
        key, _, text = line.partition("=")
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if key in TEXTS and not quoted:
            parsed.append(Override(OverrideType.CHANGE, key, ValueType.ELEMENT, _literal(text), input_line=line))
            continue
        try:
            parsed += parser.parse_overrides([line])
        except OverrideParseException as error:
            raise Refusal(line, *_syntax_problem(line, error)) from None
    return parsed


def is_hydras(override: Override) -> bool:
    """Whether an override is for Hydra itself: `hydra/launcher=joblib`, `hydra.sweep.dir=x`."""
    return override.key_or_group.partition("/")[0].partition(".")[0] == "hydra"


def split_overrides(parsed: list[Override], groups: list[str]) -> Overrides:
    """Sort parsed overrides into groups and values.

    Args:
        parsed: overrides without sweeps.
        groups: names of the config groups; `data=gsm8k` is a choice, `data={path: x}` a value.

    Raises:
        Refusal: several values without `-m`, a setting of Hydra's own, a key that the schema does not have.
    """
    result = Overrides()
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override():
            raise Refusal(
                key,
                f"{override.get_value_string()!r} holds several values",
                "add -m for one job a value, or write [a,b]",
            )
        if is_hydras(override):
            raise Refusal(
                key,
                "Hydra's own settings have no effect here",
                "hydra/launcher, hydra/sweeper and hydra.sweep.dir have, with -m; a run has run_dir and --config-dir",
            )
        elif key in groups and not isinstance(override.value(), dict):
            result.groups.append(_group_choice(override))
        elif override.package is not None or "/" in key:
            raise Refusal(override.get_key_element(), "no such config group", _nearest_group(key, groups))
        else:
            check_key(key, override.value())
            result.values.append(override)
    return result


def apply_values(config: DictConfig, values: list[Override]) -> None:
    """Set the values on a composed configuration, in the order they were typed.

    Raises:
        Refusal: a value of the wrong type, the deletion of a key that is not there.
    """
    for override in values:
        key, value = override.key_or_group, override.value()
        try:
            if override.is_delete():
                _delete(config, key)
                continue
            for block, kind in absent_blocks(key):
                if OmegaConf.select(config, block) is None and value is not None:
                    OmegaConf.update(config, block, kind(), force_add=True)
            OmegaConf.update(config, key, value, merge=key not in REPLACED, force_add=True)
        except OmegaConfBaseException as error:
            raise value_refusal(error, key, value) from None


def value_refusal(error: OmegaConfBaseException, key: str = "", value: object = None) -> Refusal:
    """OmegaConf's complaint as a refusal; `key` and `value` are what was typed, where that is known."""
    path = str(error.full_key or key)
    problem = str(error).partition("\n")[0]
    if path == key and not isinstance(value, dict):
        problem = f"{value!r} is not of the type it must have"
    return Refusal(path, problem, f"allowed: {type_name(path)}")


def _literal(text: str) -> str:
    """The text for OmegaConf, which would take `${` for an interpolation, and read backslashes before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _group_choice(override: Override) -> str:
    """`group=choice` as Hydra takes it: with a `+` only where the choice goes to a block of its own, as in
    `data@sft.stage_two.data=math`, which no defaults list names."""
    key, value = override.key_or_group, override.value()
    if key in SEVERAL and not override.is_delete() and override.package is None:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return f"{key}=[{','.join(dict.fromkeys(names))}]"
    if override.is_delete() or not isinstance(value, str):
        raise Refusal(key, f"{override.input_line!r} names no choice", f"one choice of this group, see --help: {key}=…")
    if override.package is None:
        return f"{key}={override.get_value_string()}"
    check_key(override.package)
    return f"+{key}@{override.package}={override.get_value_string()}"


def _delete(config: DictConfig, key: str) -> None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in node:
        raise Refusal(f"~{key}", "nothing to delete: the key is not set", "~ takes back a key that is set")
    if node._metadata.object_type not in (dict, None):
        raise Refusal(f"~{key}", "this key cannot be deleted", f"set it instead, allowed: {type_name(key)}")
    with open_dict(node):
        del node[name]


def _nearest_group(key: str, groups: list[str]) -> str:
    close = difflib.get_close_matches(key, groups, n=1)
    return f"did you mean {close[0]!r}?" if close else "one of: " + ", ".join(sorted(groups))


def _syntax_problem(line: str, error: OverrideParseException) -> tuple[str, str]:
    if "=" not in line:
        close = difflib.get_close_matches(line, [*ORDER, "pipeline", *TOOLS], n=1)
        hint = f"did you mean 'stage={close[0]}'?" if close else "an override is key=value"
        return "this is no override: it has no '='", hint
    reason = [text for text in str(error).splitlines() if text and not text.startswith(("See ", "Error parsing"))]
    return (
        f"this cannot be parsed: {reason[0].strip()}",
        "an override is key=value; quote what holds spaces or signs, as in 'key=\"a: b\"', and write {a: 1} or [a,b]",
    )
