"""A plugin's function from its path, in this process. Importing this module imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable
from types import ModuleType

from ruyi_rl.rewards.check import check_function
from ruyi_rl.rewards.paths import RewardPath


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


def start_hook(path: str) -> Callable | None:
    """The `_start(**kwargs)` of a plugin file, which is called once in every worker; None where it has none."""
    place = RewardPath.parse(path)
    return getattr(_module(str(place.find())), "_start", None) if place.file else None


def is_async(function: Callable) -> bool:
    """Whether calling the function gives something to await."""
    return any(inspect.iscoroutinefunction(called) for called in (function, type(function).__call__))


def _module(file: str) -> ModuleType:
    """The plugin as a module under a name of its own, so that it neither hides nor is hidden by another `format`."""
    name = f"ruyi_rl_plugin_{zlib.crc32(file.encode()):08x}"
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
