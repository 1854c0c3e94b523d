"""The embedded task: chains of sums and differences, with demonstrations of mixed style that are partly wrong.

A family that imitates such demonstrations knows how to add but is unsure: it has learnt to err as often as they do.
Reinforcement learning then has something honest to gain, judged by a rule on problems that no demonstration showed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from ruyi_rl.refusal import Refusal, nearest

LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"terms": [2, 3], "operators": "+", "max_operand": 9},
    "medium": {"terms": [3, 4], "operators": "+", "max_operand": 9},
    "hard": {"terms": [4, 5, 6], "operators": "+-", "max_operand": 20},
}
STYLES = ("direct", "worked")
_FARTHEST_ERROR = 3


@dataclass
class ArithmeticOptions:
    """`data.task` of the embedded task."""

    level: str = "medium"
    """`easy`, `medium` or `hard`: sets the next three where they are None."""
    terms: list[int] | None = None
    """Numbers of terms; problems are spread evenly over them as far as each has enough."""
    operators: str | None = None
    """`+` or `+-`."""
    max_operand: int | None = None
    """Operands are 1 … max_operand."""
    train_problems: int = 4000
    """Distinct training problems."""
    test_problems: int = 256
    """Distinct held-out problems, none of them a training problem."""
    demonstrations: int = 1
    """Demonstrations a training problem, each drawn anew."""
    styles: dict[str, float] = field(default_factory=lambda: {"direct": 0.6, "worked": 0.4})
    """Style -> weight in the mix. `direct`: `\\boxed{19}`; `worked`: running totals, `3+5=8;8+7=15;\\boxed{15}`."""
    wrong: dict[str, float] = field(default_factory=lambda: {"direct": 0.25, "worked": 0.1})
    """Style -> share of wrong demonstrations. A wrong number lies at most 3 off; in a worked one it stands in one step
    and carries through to the answer."""


def arithmetic_options(task: dict[str, Any]) -> ArithmeticOptions:
    """Build and check the options, with the level filled in. Raises Refusal for an unknown key or impossible value."""
    known = [f.name for f in fields(ArithmeticOptions)]
    for key in task:
        if key not in known:
            raise Refusal(f"data.task.{key}", "unknown key", nearest(key, known))
    options = ArithmeticOptions(**task)
    if options.level not in LEVELS:
        raise Refusal("data.task.level", f"unknown level {options.level!r}", nearest(str(options.level), LEVELS))
    changed = False
    for key, value in LEVELS[options.level].items():
        if getattr(options, key) is None:
            setattr(options, key, value)
        changed |= getattr(options, key) != value
    if changed:
        options.level = "custom"
    _check(options)
    return options


def _check(options: ArithmeticOptions) -> None:
    def refuse(key: str, allowed: str) -> None:
        raise Refusal(f"data.task.{key}", f"{getattr(options, key)!r} is impossible", allowed)

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    terms = options.terms
    if not isinstance(terms, list) or not terms or len(set(terms)) < len(terms) or not all(whole(n, 2) for n in terms):
        refuse("terms", "a list of different whole numbers, each at least 2")
    if options.operators not in ("+", "+-"):
        refuse("operators", "'+' or '+-'")
    for key, least in (("max_operand", 1), ("train_problems", 1), ("test_problems", 0), ("demonstrations", 1)):
        if not whole(getattr(options, key), least):
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


def check_problems(options: ArithmeticOptions) -> None:
    """Raises Refusal where the task has fewer distinct problems than training and held-out split need."""
    exist = sum(_count(options, terms) for terms in options.terms)
    wanted = options.train_problems + options.test_problems
    if wanted > exist:
        raise Refusal(
            "data.task",
            f"{options.train_problems} training and {options.test_problems} held-out problems are {wanted}, but only "
            f"{exist} different ones exist (terms {options.terms}, operators {options.operators!r}, operands "
            f"1 to {options.max_operand})",
            "fewer problems, more terms or larger operands",
        )


def generate(options: ArithmeticOptions, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw the training and the held-out rows; the same for the same options and seed on every machine.

    Returns:
        Training rows, `train_problems * demonstrations` of them:
        {"prompt": [{"role": "user", "content": "3+5+7="}], "completion": [{"role": "assistant", "content": …}],
        "answer": "15", "level": "medium", "terms": 3, "style": "direct"}, and held-out rows, which have neither
        completion nor style.

    Raises:
        Refusal: fewer distinct problems exist than are asked for.
    """
    training, held_out = _split(options, seed)
    # A stream of its own: other styles or error rates leave the problems and the split as they are.
    rng = random.Random(f"arithmetic demonstrations {seed}")
    train = [
        _row(options, problem) | demonstrate(options, problem, rng)
        for _ in range(options.demonstrations)
        for problem in training
    ]
    return train, [_row(options, problem) for problem in held_out]


def generate_texts(options: ArithmeticOptions, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same problems as plain text for pre-training: prompt and demonstration run together in `text`.

    Held-out texts have a demonstration too, so that a loss on them is of the same kind as the training loss.
    """
    train, _ = generate(options, seed)
    rng = random.Random(f"arithmetic held-out texts {seed}")
    test = [_row(options, problem) | demonstrate(options, problem, rng) for problem in _split(options, seed)[1]]
    return [_as_text(row) for row in train], [_as_text(row) for row in test]


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    turns = row.pop("prompt") + row.pop("completion")
    return row | {"text": "".join(turn["content"] for turn in turns)}


def _split(options: ArithmeticOptions, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    check_problems(options)
    problems = _draw_problems(options, random.Random(f"arithmetic problems {seed}"))
    return problems[options.test_problems :], problems[: options.test_problems]


def _row(options: ArithmeticOptions, problem: list[int]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": _expression(problem) + "="}],
        "answer": str(sum(problem)),
        "level": options.level,
        "terms": len(problem),
    }


def demonstrate(options: ArithmeticOptions, problem: list[int], rng: random.Random) -> dict[str, Any]:
    """One demonstration: the columns `completion` and `style`. A problem is its signed terms: 3+5-7 is [3, 5, -7]."""
    style = rng.choices(STYLES, [options.styles.get(style, 0.0) for style in STYLES])[0]
    steps = [1] if style == "direct" else list(range(1, len(problem)))
    wrong_step = rng.choice(steps) if rng.random() < options.wrong.get(style, 0.0) else None
    if style == "direct":
        total = sum(problem)
        content = rf"\boxed{{{_near(total, rng) if wrong_step else total}}}"
    else:
        content = ";".join(_work(problem, wrong_step, rng))
    return {"completion": [{"role": "assistant", "content": content}], "style": style}


def _work(problem: list[int], wrong_step: int | None, rng: random.Random) -> Iterator[str]:
    total = problem[0]
    for step, term in enumerate(problem[1:], 1):
        result = total + term
        if step == wrong_step:
            result = _near(result, rng)
        yield f"{total}{term:+d}={result}"
        total = result
    yield rf"\boxed{{{total}}}"


def _near(number: int, rng: random.Random) -> int:
    """A wrong number near the right one, with no new minus sign."""
    lowest = -_FARTHEST_ERROR if number < 0 else max(-_FARTHEST_ERROR, -number)
    return number + rng.choice([off for off in range(lowest, _FARTHEST_ERROR + 1) if off])


def _expression(problem: list[int]) -> str:
    return str(problem[0]) + "".join(f"{term:+d}" for term in problem[1:])


def _count(options: ArithmeticOptions, terms: int) -> int:
    return options.max_operand**terms * len(options.operators) ** (terms - 1)


def _draw_problems(options: ArithmeticOptions, rng: random.Random) -> list[list[int]]:
    """Distinct problems in random order, as even over the numbers of terms as these have enough of them."""
    wanted = options.train_problems + options.test_problems
    problems = []
    by_count = sorted(options.terms, key=lambda terms: _count(options, terms))
    for position, terms in enumerate(by_count):
        count = _count(options, terms)
        share = min(count, (wanted - len(problems)) // (len(by_count) - position))
        problems += [_problem(options, terms, index) for index in _sample(rng, count, share)]
    rng.shuffle(problems)
    return problems


def _sample(rng: random.Random, count: int, share: int) -> list[int]:
    """`share` different numbers below `count`, which may be beyond what `range` has a length for."""
    if count < 2**62:
        return rng.sample(range(count), share)
    drawn: dict[int, None] = {}
    while len(drawn) < share:
        drawn[rng.randrange(count)] = None
    return list(drawn)


def _problem(options: ArithmeticOptions, terms: int, index: int) -> list[int]:
    """The index-th problem of so many terms: a bijection, so different indices are different problems."""
    problem = []
    for position in range(terms):
        index, operand = divmod(index, options.max_operand)
        sign = 1
        if position:
            index, operator = divmod(index, len(options.operators))
            sign = -1 if options.operators[operator] == "-" else 1
        problem.append(sign * (operand + 1))
    return problem
