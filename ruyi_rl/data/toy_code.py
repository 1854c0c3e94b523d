"""The embedded code task: tiny Python functions from examples of their values, with demonstrations partly wrong.

A problem shows two values of an unknown function (`f(0)=7 f(100)=207`); a solution is a program that defines it
(`def f(x):return 2*x+7`). Only one function of the task's has these values. A solution is judged by running it on
inputs that the problem does not show, and a held-out problem's function is in no training row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ruyi_rl.refusal import Refusal, nearest

KINDS: dict[str, tuple[str, ...]] = {
    "shift": ("x+{b}", "x-{b}", "{b}-x"),
    "clamp": ("max(x,{b})", "min(x,{b})"),
    "distance": ("abs(x-{b})",),
    "linear": ("{a}*x+{b}",),
    "square": ("{a}*x*x+{b}",),
    "text": ("x+'{b}'", "'{b}'+x", "x+x+'{b}'", "x[::-1]+'{b}'", "x.upper()+'{b}'"),
}
"""Kind -> the forms of its functions."""
FACTORS = range(2, 10)
OFFSETS = range(1, 100)
STYLES = ("direct", "planned")
# The shown inputs make the numbers of a function legible in its values. The hidden ones lie around and between them:
# two different functions of the task's differ on one of these at least, so that no wrong one passes.
NUMBERS, HIDDEN_NUMBERS = (0, 100), (-60, 1, 7, 30, 64, 205)
TEXTS, HIDDEN_TEXTS = ("", "ab"), ("q", "oak", "Seven", "k2")
_FARTHEST_ERROR = 3


@dataclass
class ToyCodeOptions:
    """`data.task` of the embedded code task."""

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    """Kinds of functions, of `shift` (x+3), `clamp` (max(x,3)), `distance` (abs(x-3)), `linear` (2*x+3), `square`
    (2*x*x+3), `text` (x+'3'); problems are spread evenly over them as far as each has enough."""
    train_problems: int = 1500
    """Distinct training problems."""
    test_problems: int = 256
    """Distinct held-out problems; the function of none is a training problem's, nor a demonstration's."""
    demonstrations: int = 1
    """Demonstrations a training problem, each drawn anew."""
    styles: dict[str, float] = field(default_factory=lambda: {"direct": 0.6, "planned": 0.4})
    """Style -> weight in the mix. `direct`: the program; `planned`: before it a comment that names the kind."""
    wrong: dict[str, float] = field(default_factory=lambda: {"direct": 0.25, "planned": 0.1})
    """Style -> share of wrong demonstrations: these have one number that lies at most 3 off."""


@dataclass(frozen=True)
class Function:
    """One function of the task's."""

    kind: str
    form: str
    """One of `KINDS[kind]`."""
    factor: int | None
    """None where the form has none."""
    offset: int

    @property
    def body(self) -> str:
        """A Python expression in `x`."""
        return self.form.format(a=self.factor, b=self.offset)

    def __call__(self, x: int | str) -> int | str:
        return eval(self.body, {"x": x})  # a form of `KINDS` with its numbers put in, and nothing else

    @property
    def problem(self) -> str:
        """The question: the function's values at the shown inputs."""
        return " ".join(f"f({x!r})={self(x)!r}" for x in (TEXTS if self.kind == "text" else NUMBERS))

    def tests(self) -> dict[str, Any]:
        """The hidden calls, in the form of `rewards/code_tests.py`."""
        hidden = HIDDEN_TEXTS if self.kind == "text" else HIDDEN_NUMBERS
        return {"entry_point": "f", "calls": [{"args": [x], "output": self(x)} for x in hidden]}


def functions(kind: str) -> list[Function]:
    """All functions of a kind; no two of the whole task are equal."""
    return [
        Function(kind, form, factor, offset)
        for form in KINDS[kind]
        for factor in (FACTORS if "{a}" in form else (None,))
        for offset in OFFSETS
    ]


def toy_code_options(task: dict[str, Any]) -> ToyCodeOptions:
    """Build and check the options. Raises Refusal for an unknown key or an impossible value."""
    known = [f.name for f in fields(ToyCodeOptions)]
    for key in task:
        if key not in known:
            raise Refusal(f"data.task.{key}", "unknown key", nearest(key, known))
    options = ToyCodeOptions(**task)
    _check(options)
    return options


def _check(options: ToyCodeOptions) -> None:
    def refuse(key: str, allowed: str) -> None:
        raise Refusal(f"data.task.{key}", f"{getattr(options, key)!r} is impossible", allowed)

    kinds = options.kinds
    if not isinstance(kinds, list) or not kinds or len(set(map(str, kinds))) < len(kinds):
        refuse("kinds", "a list of different kinds: " + ", ".join(KINDS))
    for kind in kinds:
        if kind not in KINDS:
            raise Refusal("data.task.kinds", f"unknown kind {kind!r}", nearest(str(kind), KINDS))
    for key, least in (("train_problems", 1), ("test_problems", 0), ("demonstrations", 1)):
        value = getattr(options, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            refuse(key, f"a whole number, at least {least}")
    for key in ("styles", "wrong"):
        shares = getattr(options, key)
        for style in shares:
            if style not in STYLES:
                raise Refusal(f"data.task.{key}.{style}", "unknown style", nearest(str(style), STYLES))
        if not all(isinstance(share, int | float) and share >= 0 for share in shares.values()):
            refuse(key, "numbers from 0 up")
    if not sum(options.styles.values()) > 0:
        refuse("styles", "at least one weight above 0")
    if any(share > 1 for share in options.wrong.values()):
        refuse("wrong", "shares from 0 to 1")


def check_problems(options: ToyCodeOptions) -> None:
    """Raises Refusal where the task has fewer functions than training and held-out split need."""
    exist = sum(len(functions(kind)) for kind in options.kinds)
    wanted = options.train_problems + options.test_problems
    if wanted > exist:
        raise Refusal(
            "data.task",
            f"{options.train_problems} training and {options.test_problems} held-out problems are {wanted}, but only "
            f"{exist} different ones exist (kinds {', '.join(options.kinds)})",
            "fewer problems or more kinds",
        )


def generate(options: ToyCodeOptions, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw the training and the held-out rows; the same for the same options and seed on every machine.

    Returns:
        Training rows, `train_problems * demonstrations` of them:
        {"prompt": [{"role": "user", "content": "f(0)=7 f(100)=207"}], "completion": [{"role": "assistant",
        "content": …}], "tests": {"entry_point": "f", "calls": [{"args": [-60], "output": -113}, …]}, "kind": "linear",
        "style": "direct"}, and held-out rows, which have neither completion nor style.

    Raises:
        Refusal: fewer functions exist than are asked for.
    """
    training, held_out = _split(options, seed)
    train = _demonstrated(options, training, set(held_out), seed, options.demonstrations)
    return train, [_row(function) for function in held_out]


def generate_texts(options: ToyCodeOptions, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same problems as plain text for pre-training: prompt and demonstration run together in `text`.

    Held-out texts have a demonstration too, so that a loss on them is of the same kind as the training loss.
    """
    training, held_out = _split(options, seed)
    train = _demonstrated(options, training, set(held_out), seed, options.demonstrations)
    test = _demonstrated(options, held_out, set(), seed, 1)
    return [_as_text(row) for row in train], [_as_text(row) for row in test]


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    turns = row.pop("prompt") + row.pop("completion")
    return row | {"text": "\n".join(turn["content"] for turn in turns)}


def _split(options: ToyCodeOptions, seed: int) -> tuple[list[Function], list[Function]]:
    """Training and held-out functions in random order, as even over the kinds as these have enough of them."""
    check_problems(options)
    rng = random.Random(f"toy code problems {seed}")
    wanted = options.train_problems + options.test_problems
    drawn: list[Function] = []
    by_count = sorted((functions(kind) for kind in options.kinds), key=len)
    for position, found in enumerate(by_count):
        drawn += rng.sample(found, min(len(found), (wanted - len(drawn)) // (len(by_count) - position)))
    rng.shuffle(drawn)
    return drawn[options.test_problems :], drawn[: options.test_problems]


def _row(function: Function) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": function.problem}],
        "tests": function.tests(),
        "kind": function.kind,
    }


def _demonstrated(
    options: ToyCodeOptions, problems: list[Function], unseen: set[Function], seed: int, times: int
) -> list[dict[str, Any]]:
    # A stream of its own: other styles or error rates leave the problems and the split as they are.
    rng = random.Random(f"toy code demonstrations {seed}")
    rows = [_row(function) for function in problems]
    return [
        row | demonstrate(options, function, unseen, rng)
        for _ in range(times)
        for function, row in zip(problems, rows, strict=True)
    ]


def demonstrate(
    options: ToyCodeOptions, function: Function, unseen: set[Function], rng: random.Random
) -> dict[str, Any]:
    """One demonstration: the columns `completion` and `style`. A wrong one is no function of `unseen`;
    where these are all the near ones, the demonstration stays right."""
    style = rng.choices(STYLES, [options.styles.get(style, 0.0) for style in STYLES])[0]
    if rng.random() < options.wrong.get(style, 0.0):
        function = rng.choice([other for other in near(function) if other not in unseen] or [function])
    program = f"def f(x):return {function.body}"
    content = f"#{function.kind}\n{program}" if style == "planned" else program
    return {"completion": [{"role": "assistant", "content": content}], "style": style}


def near(function: Function) -> list[Function]:
    """The functions that differ in one number by at most 3."""
    steps = [step for step in range(-_FARTHEST_ERROR, _FARTHEST_ERROR + 1) if step]
    found = [replace(function, offset=function.offset + step) for step in steps if function.offset + step in OFFSETS]
    if function.factor is not None:
        factors = [function.factor + step for step in steps if function.factor + step in FACTORS]
        found += [replace(function, factor=factor) for factor in factors]
    return found
