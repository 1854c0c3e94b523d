"""Reward functions from their options, in this process. Importing this module imports no torch."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_function
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.paths import RewardPath
from ruyi_rl.rewards.results import RewardCounts, RewardError, clean_rewards


class RewardFunction:
    """A plugin's function with its keyword arguments bound, as TRL calls it; can be pickled.

    Calling it with `completions` and any other keyword gives one finite float or None a completion.

    Args:
        name: its name in the metrics.
        path: file, `file.py:function` or dotted name.
        kwargs: passed at every call; they win over a column of the same name.

    Raises (when called):
        RewardError: where the function raises, with the plugin's file and line, or returns a wrong shape.
    """

    def __init__(self, name: str, path: str, kwargs: Mapping[str, Any] | None = None):
        self.__name__ = name
        self.path, self.kwargs, self.counts = path, dict(kwargs or {}), RewardCounts()
        self.function = load_function(path)

    def __reduce__(self):
        return (reward_function, (self.__name__, self.path, self.kwargs))

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        try:
            returned = self.function(completions=completions, **columns | self.kwargs)
        except Exception as error:
            raise self._located(error) from error
        return clean_rewards(self.__name__, returned, len(completions), self.counts)

    def _located(self, error: Exception) -> RewardError:
        """The error with the place in the plugin; the innermost place where it left the plugin."""
        frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
        source = inspect.getsourcefile(inspect.unwrap(self.function)) if inspect.isroutine(self.function) else None
        frame = next((frame for frame in reversed(frames) if frame.filename == source), frames[-1])
        return RewardError(f"{self.__name__}: {frame.filename}:{frame.lineno}: {type(error).__name__}: {error}")


class AsyncRewardFunction(RewardFunction):
    """The same for an `async def` plugin; TRL awaits all of these together."""

    async def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        try:
            returned = await self.function(completions=completions, **columns | self.kwargs)
        except Exception as error:
            raise self._located(error) from error
        return clean_rewards(self.__name__, returned, len(completions), self.counts)


@dataclass(frozen=True)
class LoadedReward:
    """A reward function that is ready to be called."""

    name: str
    """Its key in `reward.functions`, and its name in the metrics."""
    function: RewardFunction
    """Of TRL's signature; its `__name__` is `name`."""
    weight: float
    """Its weight in the sum."""


def load_reward_functions(options: RewardOptions) -> list[LoadedReward]:
    """All functions of a `reward` group, in the order of the config.

    Raises:
        Refusal: where a function cannot be imported; the message gives the reason.
    """
    loaded = []
    for name, function in options.functions.items():
        # First without importing it: that message is the better one.
        check_function(f"reward.functions.{name}", function.path, function.kwargs)
        try:
            bound = reward_function(name, function.path, function.kwargs)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{function.path!r} cannot be imported: {type(error).__name__}: {error}"
            raise Refusal(f"reward.functions.{name}.path", problem, f"{where.filename}:{where.lineno}") from error
        loaded.append(LoadedReward(name, bound, float(function.weight)))
    return loaded


def reward_function(name: str, path: str, kwargs: Mapping[str, Any] | None = None) -> RewardFunction:
    """A plugin's function, plain or async, with `kwargs` bound."""
    bound = RewardFunction(name, path, kwargs)
    function = bound.function
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    return AsyncRewardFunction(name, path, kwargs) if is_async else bound


def load_function(path: str) -> Callable:
    """Import a plugin file or a dotted name, and give its function.

    Raises:
        Refusal: a file that is not there, or has not the function.
        ImportError, or whatever the plugin raises while it is imported.
    """
    place = RewardPath.parse(path)
    if place.file is None:
        return getattr(importlib.import_module(place.module), place.function)
    function = check_function("path", path, {})
    return getattr(_module(str(place.find())), function)


def _module(file: str) -> ModuleType:
    """The plugin as a module under a name of its own, so that it neither hides nor is hidden by another `format`."""
    name = "ruyi_rl_plugin_" + hashlib.sha256(file.encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
