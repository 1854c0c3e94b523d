"""From the command's overrides to a `RunConfig`: Hydra composes, the schema types, the name is fixed by the values."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

import ruyi_rl
from ruyi_rl.cli.overrides import apply_values, parse_overrides, split_overrides, value_refusal
from ruyi_rl.cli.schema import check_key
from ruyi_rl.cli.sweep.options import register_sweep_groups
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import decides
from ruyi_rl.redaction import without_secrets
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.validation.trainers import check_trainer_fields

UNNAMED = (
    *("stage", "name", "run_dir", "fresh", "num_processes", "launch", "push_to", "runs"),
    *("eval", "generate", "serve", "export", "new_reward", "check_reward", "compare", "memory"),
)
"""Keys that do not enter the run's default name: they decide what is done and where, not with which result."""


Compositions = dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]]
"""Chosen groups -> what their files give, and group -> choice."""


@dataclass(frozen=True)
class ConfigSource:
    """Where configuration files come from."""

    extra: Path | None = None
    """The user's own folder of groups, searched after the shipped one (`--config-dir`)."""
    root: str = "config"
    """Name of the root file without suffix (`--config-name`)."""
    working: Path | None = None
    """`conf` in the working folder, searched last: for further choices of the shipped groups."""

    @property
    def own(self) -> list[Path]:
        """The user's folders, first match first."""
        return [folder for folder in (self.extra, self.working) if folder is not None]

    @property
    def folders(self) -> list[Path]:
        """The folders searched, first match first."""
        return [conf_dir(), *self.own]

    def choices(self) -> dict[str, list[str]]:
        """Config group -> its choices, both sorted."""
        groups: dict[str, set[str]] = {}
        for folder in self.folders:
            for file in folder.glob("*/*.yaml"):
                # A `conf` in the working folder may be another program's, with groups of its own.
                if folder != self.working or file.parent.name in groups:
                    groups.setdefault(file.parent.name, set()).add(file.stem)
        return {group: sorted(names) for group, names in sorted(groups.items())}

    def file(self, group: str, choice: str) -> Path:
        """The file of one choice."""
        return next(path for folder in self.folders if (path := folder / group / f"{choice}.yaml").is_file())


def conf_dir() -> Path:
    """The shipped configuration: `ruyi_rl/conf` in an installed package, else `conf` beside the package."""
    package = Path(ruyi_rl.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def working_conf(extra: Path | None = None) -> Path | None:
    """`conf` in the working folder; None where there is none, or where it is searched anyway.

    Args:
        extra: another folder that is searched.
    """
    folder = Path.cwd() / "conf"
    searched = [path for path in (conf_dir(), extra) if path is not None]
    return folder if folder.is_dir() and not any(folder.samefile(path) for path in searched) else None


@functools.cache  # Hydra copies what it is told, which takes longer than all the rest of a composition
def register_schema() -> None:
    """Tell Hydra the type of the root, which config.yaml names as `run_config`, and what a sweep may be launched by."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    register_sweep_groups()


def compose_config(
    overrides: list[str], source: ConfigSource = ConfigSource(), known: Compositions | None = None
) -> DictConfig:
    """Compose the configuration of a command: typed by `RunConfig`, named, trainer fields checked.

    Args:
        overrides: Hydra overrides as typed, without sweeps.
        source: the files to compose from.
        known: what files gave for the same groups, kept from call to call, as for the jobs of a sweep.

    Returns:
        The configuration, interpolations unresolved.

    Raises:
        Refusal: unknown keys or choices, wrong types, bad syntax.
    """
    groups = source.choices()
    split = split_overrides(parse_overrides(overrides), list(groups))
    _refuse_hidden(split.groups, source)
    config, choices = _compose(split.groups, source, groups, known)
    apply_values(config, split.values)
    check_trainer_fields(OmegaConf.to_container(config))
    if OmegaConf.is_missing(config, "name"):
        experiment = choices.get("experiment")
        plain_groups = [f"{group}={choices[group]}" for group in (["experiment"] if experiment else ["model", "data"])]
        plain, _ = _compose(plain_groups, source, groups, known)
        config.name = default_name(config, plain, experiment)
    return config


def default_name(config: DictConfig, plain: DictConfig, experiment: str | None) -> str:
    """`<model>-<data>`, or the experiment's name; then `-<hash>` where values differ from the plain choice's.

    Args:
        config: the command's configuration.
        plain: the configuration of the same experiment, or of the same model and data, without anything else.
        experiment: the chosen experiment, if any.
    """
    parts = [experiment] if experiment else [str(config.model.name), str(config.data.name)]
    mine, theirs = (_naming(each) for each in (config, plain))
    changed = {key: mine.get(key) for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    changed = {key: value for key, value in changed.items() if decides(key) and key != "grpo.rollout_only"}
    if changed:
        parts.append(hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6])
    return "-".join(parts)


def _naming(config: DictConfig) -> dict[str, str]:
    """Dotted key -> value as JSON, of all that may enter the run's name."""
    values = {key: json.loads(value) for key, value in _flat(config, UNNAMED).items()}
    return {key: json.dumps(value) for key, value in without_secrets(values).items()}


def resolve_values(config: DictConfig) -> None:
    """Replace every interpolation by its value. Raises Refusal for one that leads nowhere."""
    check_interpolations(config)
    OmegaConf.resolve(config)


def check_interpolations(config: DictConfig) -> None:
    """Refuse an interpolation that leads nowhere."""
    for key in _flat(config):
        try:
            OmegaConf.select(config, key)
        except InterpolationResolutionError as error:
            raise Refusal(key, str(error).partition("\n")[0], "${…} names another key") from None


def to_run_config(config: DictConfig) -> RunConfig:
    """The configuration as dataclasses, interpolations resolved, `~` in paths expanded.

    Raises:
        Refusal: an interpolation that leads nowhere.
    """
    check_interpolations(config)
    try:
        # Resolves what it converts; resolved before, a text with an escaped ${ would be resolved again.
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise value_refusal(error) from None
    result.run_dir = str(Path(result.run_dir).expanduser())
    paths = (
        *((result.model, "base"), (result.data, "path"), (result, "start_from")),
        *((result.generate, "file"), (result.generate, "output"), (result.serve, "output"), (result.export, "output")),
        *((result.check_reward, "completions"), (result.check_reward, "output")),
    )
    for holder, key in paths:
        if (path := getattr(holder, key)) is not None and path.startswith("~"):
            setattr(holder, key, str(Path(path).expanduser()))
    return result


def _compose(
    overrides: list[str], source: ConfigSource, groups: dict[str, list[str]], known: Compositions | None = None
) -> tuple[DictConfig, dict[str, Any]]:
    known, key = {} if known is None else known, tuple(overrides)
    if key not in known:
        config = compose_with_hydra(overrides, source, groups)
        choices = dict(config.hydra.runtime.choices)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        known[key] = config, choices
    return copy.deepcopy(known[key])


def compose_with_hydra(overrides: list[str], source: ConfigSource, groups: dict[str, list[str]]) -> DictConfig:
    """The configuration with Hydra's own block under `hydra`.

    Args:
        overrides: `group=choice`, and of Hydra's own settings `key=value` too.
        groups: config group -> its choices, for messages.

    Raises:
        Refusal: files or choices that do not fit.
    """
    register_schema()
    folders = [json.dumps(f"file://{folder}", ensure_ascii=False) for folder in source.own]
    searchpath = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(source.root, overrides=[*searchpath, *overrides], return_hydra_config=True)
    except MissingConfigException as error:
        raise _missing_refusal(error, groups) from None
    except ConfigCompositionException as error:
        raise _composition_refusal(error) from None
    except YAMLError as error:
        raise Refusal("configuration", " ".join(str(error).split()), "a YAML file") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise Refusal("configuration", " ".join(str(error).split())) from None


def _refuse_hidden(chosen: list[str], source: ConfigSource) -> None:
    """Refuse a choice whose file in a folder of the user's would be passed over for the shipped one of its name."""
    for override in chosen if source.own else ():
        group, _, choice = override.lstrip("+").partition("=")
        group = group.partition("@")[0]
        for name in choice.strip("[]").split(","):  # several of a group that takes them
            shipped = conf_dir() / group / f"{name}.yaml"
            for folder in source.own:
                mine = folder / group / shipped.name
                if shipped.is_file() and mine.is_file() and mine.read_bytes() != shipped.read_bytes():
                    problem = f"{name!r} is a shipped choice, and {mine} would not be read"
                    raise Refusal(group, problem, f"rename that file, for instance to my_{mine.name}")


def _missing_refusal(error: MissingConfigException, groups: dict[str, list[str]]) -> Refusal:
    group, _, choice = (error.missing_cfg_file or "").partition("/")
    if group in groups and choice:
        return Refusal(group, f"{choice!r} is no choice of this group", nearest(choice, groups[group]))
    return Refusal("configuration", " ".join(str(error).partition("Config search path")[0].split()))


def _composition_refusal(error: ConfigCompositionException) -> Refusal:
    """The refusal for a configuration file that does not fit the schema; Hydra's message begins with the file."""
    cause = error.__cause__ or error.__context__
    text = " ".join(str(error).split())
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return Refusal("configuration", text)
    file = text.partition(":")[0].removeprefix("In ")
    try:
        check_key(str(cause.full_key))
        refusal = value_refusal(cause)
    except Refusal as unknown:
        refusal = unknown
    return Refusal(refusal.key, f"in {file}: {refusal.problem}", refusal.allowed)


def _flat(config: DictConfig, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Dotted key -> value as JSON, interpolations unresolved; the top keys in `without` are left out."""
    flat: dict[str, str] = {}

    def visit(value: Any, prefix: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(item, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = json.dumps(value, default=str)

    container = OmegaConf.to_container(config)
    visit({key: value for key, value in container.items() if key not in without}, "")
    return flat
