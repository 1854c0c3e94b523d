"""What `hydra/sweeper=optuna` draws from: Hydra's overrides as optuna's distributions, and optuna's samplers."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override, RangeSweep, Transformer, ValueType

from ruyi_rl.cli.sweep.options import OptunaSweeper
from ruyi_rl.refusal import Refusal

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution of an override: `interval(a,b)`, `tag(log,interval(a,b))`, `range(a,b,step)`, `a,b`.

    Raises:
        Refusal: bounds that make none.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, key = override.value(), override.key_or_group
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise Refusal(key, "glob() names no values", "a=x,y")
    try:
        if override.is_interval_sweep():
            whole, log = isinstance(value.start, int) and isinstance(value.end, int), "log" in value.tags
            kind = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log=log)
        values = list(override.sweep_iterator(transformer=Transformer.identity))
        if isinstance(value, RangeSweep) and not value.shuffle and len(values) > 1 and value.step > 0:
            # The end is left out, as everywhere in Hydra.
            kind = IntDistribution if all(isinstance(each, int) for each in values) else FloatDistribution
            return kind(values[0], values[-1], step=value.step)
    except ValueError as error:
        raise Refusal(key, str(error), "interval(low,high), low below high, and above 0 with tag(log, …)") from None
    return CategoricalDistribution(list(override.sweep_iterator(transformer=Transformer.encode)))


def grid(space: dict[str, BaseDistribution]) -> dict[str, list[Any]]:
    """The values of every override.

    Raises:
        Refusal: an interval has no end of them.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, list[Any]] = {}
    for key, each in space.items():
        if isinstance(each, CategoricalDistribution):
            found[key] = list(each.choices)
        elif isinstance(each, (IntDistribution, FloatDistribution)) and each.step is not None and not each.log:
            count = round((each.high - each.low) / each.step) + 1
            found[key] = [each.low + number * each.step for number in range(count)]
        else:
            raise Refusal(key, "a grid needs values that can be counted", "range() or choice(), or another sampler")
    return found


def grid_size(space: dict[str, BaseDistribution]) -> int:
    return math.prod(len(values) for values in grid(space).values())


def make_sampler(name: str, options: OptunaSweeper, seed: int, space: dict[str, BaseDistribution]) -> Any:
    """Optuna's sampler of this name."""
    from optuna import samplers

    given = {key: value for key, value in asdict(options.sampler).items() if key != "seed"}
    if name == "grid":
        return samplers.GridSampler(grid(space), seed=0)  # a seed decides the order alone, and has to stay the same
    if name == "cmaes":
        try:
            return samplers.CmaEsSampler(seed=seed)
        except ImportError:
            raise Refusal("hydra/sweeper/sampler", "cmaes is not installed", "pip install cmaes") from None
    return {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}[name](seed=seed, **given)
