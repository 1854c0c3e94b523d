"""One reward function on trial: the contract's checks over its pools, its speed and its memory. Imports no torch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psutil

from ruyi_rl.rewards import contract
from ruyi_rl.rewards.contract import ODD, Verdict
from ruyi_rl.rewards.options import RewardFunctionOptions
from ruyi_rl.rewards.pool import PoolLimits, RewardPool
from ruyi_rl.rewards.pool.pool import default_workers
from ruyi_rl.rewards.samples import Samples

if TYPE_CHECKING:
    from ruyi_rl.rewards.pool import Scores

FIRST = 4
"""Samples that are tried before the others: where all of these fail, the others are not waited for."""
MEASURED_SECONDS = 1.0
"""How long a throughput is measured, about."""
MOST_SAMPLES = 20_000
"""What a throughput is measured on at most."""


@dataclass
class Speed:
    """What a function costs."""

    workers: int
    """Worker processes that its options give it on this machine."""
    one: float
    """Samples a second with one worker."""
    all: float
    """Samples a second with all `workers`."""
    median: float
    """Seconds of a sample by itself, the way to the worker and back included."""
    slowest: float
    memory_gb: float
    """GiB that one worker holds after the samples."""


@dataclass
class Trial:
    """What came of one function."""

    name: str
    verdicts: list[Verdict] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    """One a sample; empty where the trial ended at once."""
    speed: Speed | None = None

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome == "broken"]


def try_function(name: str, options: RewardFunctionOptions, samples: Samples, alone: bool = True) -> Trial:
    """Run every check of the contract on one function.

    Args:
        name: its key in `reward.functions`.
        alone: no other function scores the samples.

    Raises:
        RewardError: the plugin cannot be imported, or its `_start` raises.
    """
    key, trial = f"reward.functions.{name}", Trial(name)
    limits = PoolLimits(options.timeout, options.workers, options.memory_gb, options.scope)
    workers = options.workers or default_workers()
    with RewardPool(name, options.path, options.kwargs, limits) as pool:
        few = samples.take(range(min(FIRST, len(samples))))
        scores = ask(pool, few)
        if len(scores.failures) == len(few):
            trial.verdicts += contract.check_runs(scores, few, key)
            return trial
        scores = ask(pool, samples)
        trial.rewards = scores.rewards
        trial.verdicts += contract.check_runs(scores, samples, key)
        odd = samples.saying(list(ODD.values()))
        trial.verdicts += contract.check_odd(ask(pool, odd), list(ODD), samples, key)
        failed = {failure.index for failure in scores.failures}
        good = samples.take(place for place in range(len(samples)) if place not in failed)
        rate = throughput(pool, good)
    trial.verdicts += contract.check_spread(scores.rewards, alone)
    # One call of the function for one call of these pools: so that it is known what stood together.
    whole = replace(limits, workers=1, scope="batch")
    with (
        RewardPool(name, options.path, options.kwargs, whole) as here,
        RewardPool(name, options.path, options.kwargs, whole) as elsewhere,
    ):
        verdicts, seconds = compare(here, elsewhere, good, options.scope, key)
    trial.verdicts += verdicts + contract.check_time(seconds, options.timeout, key)
    others = {process.pid for process in psutil.Process().children(recursive=True)}
    with RewardPool(name, options.path, options.kwargs, replace(limits, workers=1)) as single:
        ask(single, good)
        memory = memory_gb(others)
        one = throughput(single, good)
    trial.verdicts += contract.check_memory(memory, options.memory_gb, key)
    trial.speed = Speed(workers, one, rate, statistics.median(seconds), max(seconds), memory)
    return trial


def compare(
    here: RewardPool, elsewhere: RewardPool, samples: Samples, scope: str, key: str
) -> tuple[list[Verdict], list[float]]:
    """The checks that score the same samples twice, and the seconds of each sample or group by itself.

    What one broken rule breaks besides is not looked at.

    Args:
        here, elsewhere: two pools that pass on each call whole, to one worker.
        samples: such as the function does not fail on.
    """
    here.start()
    units = _units(samples, scope)
    parts = [ask(here, samples.take(unit)) for unit in units]
    seconds = [part.seconds / len(unit) for part, unit in zip(parts, units, strict=True)]
    first = ask(here, samples)
    verdicts = contract.check_together(first, samples, key)
    if first.failures:
        return verdicts, seconds
    verdicts += contract.check_same_again(first, ask(here, samples))
    if verdicts[-1].outcome == "broken":
        return verdicts, seconds
    verdicts += contract.check_other_worker(first, ask(elsewhere, samples))
    order = contract.shuffled(len(samples))
    verdicts += contract.check_order(first, ask(here, samples.take(order)), order)
    if verdicts[-1].outcome == "holds" and scope != "batch":
        together = [first.rewards[place] for unit in units for place in unit]
        apart = [reward for part in parts for reward in part.rewards]
        verdicts += contract.check_parts(together, apart, scope, key)
    as_text = here.score(samples.completions, samples.columns, samples.groups)
    verdicts += contract.check_forms(first, as_text, samples, key)
    return verdicts, seconds


def _units(samples: Samples, scope: str) -> list[list[int]]:
    """The places of some samples, or of whole groups, from all over."""
    units = [[place] for place in range(len(samples))]
    if scope != "sample":
        members: dict[str, list[int]] = {}
        for place, group in enumerate(samples.groups):
            members.setdefault(group, []).append(place)
        units = list(members.values())
    return units[:: -(-len(units) // contract.ALONE)]


def ask(pool: RewardPool, samples: Samples) -> Scores:
    """The scores of completions as the trainer gives them: chat messages."""
    return pool.score(samples.messages(), samples.columns, samples.groups)


def throughput(pool: RewardPool, samples: Samples) -> float:
    """Samples a second, of the samples repeated as often as it takes to measure it."""
    seconds = ask(pool, samples).seconds
    repeats = max(1, min(MOST_SAMPLES // len(samples), round(MEASURED_SECONDS / max(seconds, 1e-6))))
    many = samples.take([*range(len(samples))] * repeats)
    groups = [f"{number // len(samples)} {group}" for number, group in enumerate(many.groups)]
    scores = pool.score(many.messages(), many.columns, groups)
    return len(many) / max(scores.seconds, 1e-9)


def memory_gb(others: set[int]) -> float:
    """GiB that the processes below this one hold, but for `others`."""
    held = 0
    for process in psutil.Process().children(recursive=True):
        try:
            held += 0 if process.pid in others else process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return held / 2**30
