"""Hydra's own settings of a sweep: `hydra/launcher=…`, `hydra.sweeper.…`, `hydra.sweep.dir`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ruyi_rl.cli.compose import ConfigSource, compose_with_hydra
from ruyi_rl.cli.overrides import is_hydras, parse_overrides
from ruyi_rl.cli.sweep.options import CLOCK, GROUPS, LAUNCHERS, SAMPLERS, SWEEPERS, OptunaSweeper
from ruyi_rl.refusal import Refusal, nearest


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep's jobs are chosen and started."""

    launcher: str
    """`basic`, `joblib`, `submitit_local` or `submitit_slurm`."""
    launching: Any
    """The launcher's dataclass."""
    folder: str | None
    """`hydra.sweep.dir`; None: by the command."""
    search: OptunaSweeper | None
    """None: every combination of the values."""
    sampler: str
    """Of a search."""


def sweep_settings(overrides: list[str], source: ConfigSource) -> tuple[SweepSettings, list[str]]:
    """What the command, and the configuration files that it chooses, say of the sweep itself.

    Args:
        overrides: the command's overrides.
        source: where the configuration comes from.

    Returns:
        The settings, and the overrides of the jobs.

    Raises:
        Refusal: a setting of Hydra's that has no effect here, or an impossible value.
    """
    parsed = parse_overrides(overrides)
    hydras = [override for override in parsed if is_hydras(override)]
    rest = [override for override in parsed if not is_hydras(override)]
    for override in hydras:
        _check_shape(override)
    groups = source.choices()
    # A group with several values is left out: none of its choices may say how the sweep is launched.
    chosen = [
        override.input_line
        for override in rest
        if override.key_or_group in groups and override.package is None and isinstance(override.value(), str)
    ]
    chosen += [override.input_line for override in hydras if override.key_or_group in GROUPS]
    hydra = compose_with_hydra(chosen, source, groups).hydra
    launcher, sweeper = (str(hydra.runtime.choices[f"hydra/{block}"]) for block in ("launcher", "sweeper"))
    sampler = str(hydra.runtime.choices.get("hydra/sweeper/sampler") or "tpe")
    kinds = {"launcher": LAUNCHERS[launcher], "sweeper": SWEEPERS[sweeper]}
    for override in hydras:
        if override.key_or_group not in GROUPS:
            _set(hydra, override, kinds, SAMPLERS[sampler])
    folder = OmegaConf.to_container(hydra.sweep)["dir"]
    settings = SweepSettings(
        launcher=launcher,
        launching=_typed(hydra.launcher, kinds["launcher"], "hydra.launcher"),
        folder=None if CLOCK in folder else _resolved(hydra.sweep, "dir", "hydra.sweep"),
        search=_search(hydra.sweeper, sampler) if sweeper == "optuna" else None,
        sampler=sampler,
    )
    typed = {override.get_key_element() for override in rest}
    params = hydra.sweeper.get("params") or {}
    lines = [f"{key}={value}" for key, value in params.items() if key not in typed]
    return settings, [*lines, *(override.input_line for override in rest)]


def _check_shape(override: Override) -> None:
    """Refuse several values, an unknown choice, and a key of Hydra's that has no effect here."""
    key = override.key_or_group
    if override.is_sweep_override():
        raise Refusal(key, f"{override.get_value_string()!r} holds several values", "one: a sweep is launched one way")
    if key in GROUPS:
        if (choice := override.value()) not in GROUPS[key]:
            raise Refusal(key, f"{choice!r} is no choice of this group", nearest(str(choice), GROUPS[key]))
    elif key == "hydra.sweep.dir" and CLOCK in str(override.value()):
        problem = f"{override.value()!r} changes with every start, so that no command could go on with what is not done"
        raise Refusal(key, problem, "a folder without ${now:…}; left out, its name follows from the command")
    elif key == "hydra.sweep.subdir":
        raise Refusal(key, "each job writes in the folder of its run", "run_dir; hydra.sweep.dir holds the record")
    elif key != "hydra.sweep.dir" and not key.startswith(("hydra.launcher.", "hydra.sweeper.")):
        effective = "hydra/launcher, hydra.launcher.…, hydra/sweeper, hydra.sweeper.… and hydra.sweep.dir have"
        raise Refusal(key, "this setting of Hydra's has no effect here", f"{effective}; for a run's folder see run_dir")


def _set(hydra: DictConfig, override: Override, kinds: dict[str, type], sampler: type) -> None:
    """Set one value of the launcher's or the sweeper's block."""
    key, value = override.key_or_group, override.value()
    block, *names = key.split(".")[1:]
    allowed = "str"
    if block != "sweep":
        kind = kinds[block]
        if names[0] == "sampler" and len(names) > 1 and kind is OptunaSweeper:
            kind, names = sampler, names[1:]
        _check_name(key, names[0], block, kind)
        allowed = next(str(each.type) for each in fields(kind) if each.name == names[0])
    try:
        OmegaConf.update(hydra, key.removeprefix("hydra."), value, merge=False, force_add=True)
    except OmegaConfBaseException:
        raise Refusal(
            key, f"{value!r} is not of the type it must have", f"allowed: {allowed.replace('| None', 'or null')}"
        ) from None


def _check_name(key: str, name: str, block: str, kind: type) -> None:
    """Refuse a name that the chosen launcher, sweeper or sampler does not have."""
    known = {each.name for each in fields(kind)} - {"defaults"}
    if name in known:
        return
    having = [
        choice for choice, node in GROUPS[f"hydra/{block}"].items() if name in {each.name for each in fields(node)}
    ]
    hint = f"hydra/{block}={'|'.join(having)} has it" if having else nearest(name, known) if known else "it has none"
    raise Refusal(key, f"the chosen {block} has no such setting", hint)


def _typed(block: DictConfig, kind: type, key: str) -> Any:
    """The block as the dataclass `kind`, interpolations resolved."""
    names = {each.name for each in fields(kind)} - {"defaults"}
    return kind(**{str(name): _resolved(block, str(name), key) for name in block if name in names})


def _resolved(block: DictConfig, name: str, key: str) -> Any:
    try:
        value = block[name]
    except OmegaConfBaseException as error:
        raise Refusal(f"{key}.{name}", str(error).partition("\n")[0], "a value that this command gives") from None
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _search(block: DictConfig, sampler: str) -> OptunaSweeper:
    search = _typed(block, OptunaSweeper, "hydra.sweeper")
    search.sampler = SAMPLERS[sampler](**(search.sampler or {}))
    checks = {
        "direction": (search.direction in ("maximize", "minimize"), "maximize or minimize"),
        "n_trials": (search.n_trials >= 1, "1 or more"),
        "n_jobs": (search.n_jobs is None or search.n_jobs >= 1, "1 or more"),
        "max_failure_rate": (0 <= search.max_failure_rate <= 1, "0 to 1"),
    }
    for name, (holds, allowed) in checks.items():
        if not holds:
            raise Refusal(f"hydra.sweeper.{name}", f"{getattr(search, name)!r} is not possible", allowed)
    return search
