"""Refuses an impossible `reward` group by reading the plugins, without importing them or torch."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.paths import RewardPath, shipped_plugins
from ruyi_rl.rewards.pool.scores import PoolLimits
from ruyi_rl.rewards.pool.values import LARGEST

# `exit` is the column that the trainer adds: the name of the exit that answered.
_GIVEN = {
    *("self", "prompts", "completions", "completion_ids", "exit"),
    *("trainer_state", "log_extra", "log_metric", "environments"),
}
SCALES = ("sum_then_normalize", "normalize_then_sum")
"""What `reward.scale` may be, besides None."""
LARGEST_WEIGHT = 1e6
_CHOICES = {"gate_on": ("passed", "failed"), "on_error": ("exclude", "stop")}


def check_reward(options: RewardOptions) -> dict[str, list[str]]:
    """Check a whole `reward` group.

    Returns:
        Name -> the data columns that the function cannot do without (its parameters without a default).

    Raises:
        Refusal: no functions, a path that leads to no function, keyword arguments that the function does not know, a
            package that the file imports and that is not installed, an impossible limit, gates in a circle, a judge
            that is not among the functions.
    """
    if not options.functions:
        raise Refusal("reward.functions", "none given", "reward=math, or any other of conf/reward/")
    for name, function in options.functions.items():
        key = f"reward.functions.{name}"
        check_function(key, function.path, function.kwargs)
        _check_imports(f"{key}.path", function.path)
        _check_limits(key, function)
    gate_order(options.functions)
    if all(function.weight == 0 for function in options.functions.values()):
        raise Refusal("reward.functions", "every weight is 0, so that there is nothing to learn", "one weight not 0")
    if options.judge is not None and options.judge not in options.functions:
        problem = f"no reward function {options.judge!r}"
        raise Refusal("reward.judge", problem, nearest(options.judge, options.functions))
    if not abs(options.pass_at) <= LARGEST:
        raise Refusal("reward.pass_at", f"{options.pass_at} is not possible", f"a number up to {LARGEST:g} in size")
    _check_clip("reward.clip", options.clip)
    if options.scale is not None and options.scale not in SCALES:
        raise Refusal("reward.scale", f"{options.scale!r} is unknown", nearest(options.scale, SCALES))
    return {name: required_columns(function.path, function.kwargs) for name, function in options.functions.items()}


def check_function(key: str, path: str, kwargs: Mapping[str, Any]) -> str:
    """Check one function's path and keyword arguments.

    Args:
        key: config key of the function, for the message.

    Returns:
        The function's name in its module.

    Raises:
        Refusal: see `check_reward`.
    """
    key = key if key.endswith("path") else f"{key}.path"
    if hidden := [name for name in kwargs if name in _GIVEN - {"exit"}]:
        problem = f"{hidden[0]!r} would hide what the trainer passes to the function"
        raise Refusal(key.removesuffix("path") + "kwargs", problem, "another name")
    if not path:
        raise Refusal(key, "none given", f"a Python file such as {shipped_plugins()[0]}, or a dotted name")
    place = RewardPath.parse(path)
    if place.file is None:
        return _check_dotted(key, path, place)
    file = place.find()
    if file is None:
        looked = ", ".join(str(folder.parent) for folder in place.places())
        raise Refusal(key, f"no file {place.file!r} (looked in {looked})", nearest(place.file, shipped_plugins()))
    tree = _parse(key, file)
    if place.function:
        names = _names(tree)
        if place.function not in names:
            raise Refusal(key, f"{file} has no {place.function!r}", nearest(place.function, _public(tree) or names))
        function = place.function
    else:
        public = sorted(_public(tree))
        if len(public) != 1:
            found = f"{len(public)} public functions: {', '.join(public)}" if public else "no public function"
            example = public[0] if public else "my_reward"
            allowed = f"one, or {place.file}:{example}" if public else "def my_reward(completions, **kwargs): …"
            raise Refusal(key, f"{file} has {found}", allowed)
        function = public[0]
    definition = _definition(tree, function)
    if definition is not None:
        _check_signature(key, file, tree, definition, kwargs)
    return function


def required_columns(path: str, kwargs: Mapping[str, Any]) -> list[str]:
    """The data columns that a checked function cannot do without; [] where its source cannot be read."""
    place = RewardPath.parse(path)
    file = place.find() if place.file else None
    if file is None:
        return []
    tree = _parse("path", file)
    definition = _definition(tree, place.function or next(iter(_public(tree))))
    if definition is None:
        return []
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [a for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    return [argument.arg for argument in required if argument.arg not in _GIVEN | set(kwargs)]


def gate_order(functions: Mapping[str, RewardFunctionOptions]) -> list[str]:
    """The functions' names, each after its gate.

    Raises:
        Refusal: a gate that is none of them, or gates in a circle.
    """
    ordered: list[str] = []

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join((*above[above.index(name) :], name))
            raise Refusal(f"reward.functions.{name}.gate", f"gates in a circle: {circle}", "a gate that is asked first")
        if name in ordered:
            return
        gate = functions[name].gate
        if gate is not None:
            if gate not in functions:
                choices = [other for other in functions if other != name]
                allowed = "one of: " + ", ".join(choices) if choices else "none: there is no other function"
                raise Refusal(f"reward.functions.{name}.gate", f"no reward function {gate!r}", allowed)
            place(gate, (*above, name))
        ordered.append(name)

    for name in functions:
        place(name, ())
    return ordered


def _check_limits(key: str, function: RewardFunctionOptions) -> None:
    if not abs(function.weight) <= LARGEST_WEIGHT:
        allowed = f"a number up to {LARGEST_WEIGHT:g} in size"
        raise Refusal(f"{key}.weight", f"{function.weight} is not possible", allowed)
    try:
        PoolLimits(function.timeout, function.workers, function.memory_gb, function.scope)
    except Refusal as refusal:
        raise Refusal(f"{key}.{refusal.key}", refusal.problem, refusal.allowed) from None
    for name, choices in _CHOICES.items():
        value = getattr(function, name)
        if value not in choices:
            raise Refusal(f"{key}.{name}", f"{value!r} is unknown", nearest(value, choices))
    if function.gate is None and function.gate_on != "passed":
        raise Refusal(f"{key}.gate_on", f"{function.gate_on!r}, but there is no gate", f"{key}.gate=<a function>")
    _check_clip(f"{key}.clip", function.clip)
    if not 0 < function.max_failure_share <= 1:
        problem = f"{function.max_failure_share} is not possible"
        raise Refusal(f"{key}.max_failure_share", problem, "above 0, up to 1 (never stop)")


def _check_clip(key: str, clip: list[float] | None) -> None:
    if clip is None:
        return
    # An infinite end is none; what is clipped must stay as small as a reward may be.
    possible = len(clip) == 2 and clip[0] <= clip[1] and -LARGEST <= clip[1] and clip[0] <= LARGEST
    if not possible or any(abs(value) > LARGEST and math.isfinite(value) for value in clip):
        allowed = f"[lowest, highest], up to {LARGEST:g} in size, such as [0, 1]"
        raise Refusal(key, f"{clip} is not possible", allowed)


def _check_imports(key: str, path: str) -> None:
    """Refuse a plugin that imports, before anything else is asked, a package that is not installed."""
    place = RewardPath.parse(path)
    file = place.find() if place.file else None
    if file is None:
        return
    for node in _parse(key, file).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            beside = (file.parent / package).is_dir() or (file.parent / f"{package}.py").is_file()
            if package not in sys.modules and not beside and importlib.util.find_spec(package) is None:
                problem = f"{file}:{node.lineno}: it imports {name!r}, and no package {package!r} is installed"
                raise Refusal(key, problem, f"install it, such as with: pip install {package}")


def _parse(key: str, file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise Refusal(key, f"{file}{f':{line}' if line else ''}: not Python: {error}", "mend that line") from error


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next((node for node in reversed(tree.body) if isinstance(node, kinds) and node.name == name), None)


def _public(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def _names(tree: ast.Module) -> set[str]:
    """Every name that the module may have: bound anywhere, or listed as text (lazy modules, `__all__`)."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)
    return names


def _check_signature(key: str, file: Path, tree: ast.Module, definition, kwargs: Mapping[str, Any]) -> None:
    arguments = definition.args
    place = f"{file}:{definition.lineno}"
    if arguments.kwarg is None:
        problem = f"{place}: {definition.name} takes no **kwargs, but the trainer passes more than it names"
        raise Refusal(key, problem, f"def {definition.name}(completions, **kwargs)")
    if arguments.posonlyargs:
        name = arguments.posonlyargs[0].arg
        raise Refusal(key, f"{place}: {definition.name} takes {name!r} by position only", "parameters without '/'")
    named = {argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]}
    if start := _definition(tree, "_start"):  # gets the same keyword arguments
        named |= {argument.arg for argument in [*start.args.args, *start.args.kwonlyargs]}
    if unknown := [name for name in kwargs if name not in named | _read_names(tree)]:
        problem = f"{place}: {definition.name} has no parameter {unknown[0]!r}"
        choices: Iterable[str] = named - _GIVEN or {"no keyword arguments"}
        raise Refusal(key.removesuffix("path") + "kwargs", problem, nearest(unknown[0], choices))


def _read_names(tree: ast.Module) -> set[str]:
    """Texts in the file: a function may read `kwargs["limit"]`."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _check_dotted(key: str, path: str, place: RewardPath) -> str:
    allowed = "a Python file such as rewards/math_answer.py, or a dotted name such as trl.rewards.think_format_reward"
    parts = path.split(".")
    if place.module is None or not all(part.isidentifier() for part in parts):
        allowed = nearest(f"rewards/{path}.py", shipped_plugins()) if place.module is None else allowed
        raise Refusal(key, f"{path!r} is neither a Python file nor a dotted name", allowed)
    spec = importlib.util.find_spec(parts[0])
    if spec is None:
        raise Refusal(key, f"no package {parts[0]!r} is installed", allowed)
    file = _module_file(key, parts[:-1], spec)
    if file is not None:
        names = _names(_parse(key, file))
        if parts[-1] not in names and "*" not in names:
            close = [name for name in names if not name.startswith("_")]
            raise Refusal(key, f"{'.'.join(parts[:-1])} has no {parts[-1]!r}", nearest(parts[-1], close)[:200])
    return parts[-1]


def _module_file(key: str, parts: list[str], spec: importlib.machinery.ModuleSpec) -> Path | None:
    """The source of a module, found by walking folders from its top package; None where it is not plain Python."""
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for position, part in enumerate(parts[1:], start=1):
        for folder in folders:
            if (folder / part / "__init__.py").is_file():
                file, folders = folder / part / "__init__.py", [folder / part]
                break
            if (folder / f"{part}.py").is_file():
                file, folders = folder / f"{part}.py", []
                break
        else:
            if not folders or any(any(folder.glob(f"{part}.*")) or (folder / part).is_dir() for folder in folders):
                return None  # a class, an extension module or a namespace package: only importing it would tell
            found = {entry.stem for folder in folders for entry in folder.iterdir() if not entry.name.startswith("_")}
            raise Refusal(key, f"{'.'.join(parts[:position])} has no module {part!r}", nearest(part, found)[:200])
    return file
