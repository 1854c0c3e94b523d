"""`bench.py rewards`: speed and accuracy of `math_answer` and `code_tests` beside what else one would call.

All contestants of a table run in the same number of worker processes, in turn, on the same rows. None of them judges an
answer twice, so that nothing is remembered. `math-verify` is called plainly: the gold answer in a box, both parsed,
verified. Programs in plain subprocesses run unconfined together with their tests, one interpreter a program. Wrong
answers are right ones exchanged between rows, of which a few are equal though they are written differently.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gzip
import json
import logging
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from bench_timing import in_turn

from ruyi_rl.rewards.pool import PoolLimits, RewardPool
from ruyi_rl.rewards.sandbox import SandboxOptions, unconfinable

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PLAIN = "plain subprocesses"
SECONDS = 20.0
"""Limit of a plain subprocess; nothing here comes near it."""


@dataclass(frozen=True)
class Answer:
    """A completion to judge."""

    text: str
    gold: str
    right: bool


@dataclass(frozen=True)
class Program:
    """A program that passes its tests."""

    text: str
    tests: dict[str, object]
    """As `rewards/code_tests.py` reads them."""
    plain: str
    """Program and tests as one script that ends with 0 where all pass."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    rows: str
    contestant: str
    workers: int
    speed: float
    """Rows per second, the median over rounds."""
    lowest: float
    highest: float
    ratio: float
    """Median over rounds of the speed over the baseline's in the same round."""
    accuracy: float
    """Share of all rows that are judged as they should be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="at most; default: all cores")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with math, math_pairs and humaneval")
    parser.add_argument("--embedded", action="store_true", help="the embedded tasks' rows instead")
    parser.add_argument("--rows", type=int, help="of each set of answers, at most; default: all")
    parser.add_argument("--quick", action="store_true", help="a few rows and one round: shows that it runs")


def rewards(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure, print the tables, and give them as plain data."""
    logging.disable(logging.WARNING)  # a line of math-verify's or TRL's for each answer that they cannot read
    rounds = 1 if arguments.quick else arguments.rounds
    answers = embedded_answers() if arguments.embedded else shared_answers(arguments.data)
    programs = embedded_programs() if arguments.embedded else humaneval(arguments.data)
    if arguments.workers < 1 or rounds < 1:
        raise SystemExit("--workers and --rounds are whole numbers, at least 1")
    limit = 32 if arguments.quick else arguments.rows
    answers = {name: rows[:limit] for name, rows in answers.items()}
    programs = programs[:8] if arguments.quick else programs
    counts = list(range(1, arguments.workers + 1))
    math = judged(answers, arguments.workers, rounds)
    show("mathematical answers", math, "math-verify")
    scaled = scaling(answers, counts, rounds)
    show("math_answer over workers", scaled, "one worker")
    if why := unconfinable(SandboxOptions()):
        print(f"\nno table of programs: {why}")
        code = []
    else:
        code = executed(programs, arguments.workers, rounds)
        show("programs", code, PLAIN)
    return {name: [asdict(row) for row in rows] for name, rows in (("math", math), ("scaling", scaled), ("code", code))}


# Rows.


def shared_answers(folder: Path) -> dict[str, list[Answer]]:
    """Right answers of MATH, boxed, and of GSM8K's model solutions, as they are; and wrong ones of both."""
    golds = [row["answer"] for row in json.loads(read(folder / "math" / "train.json")) if row["answer"]]
    boxed = [Answer(rf"The answer is \boxed{{{gold}}}.", gold, True) for gold in golds]
    pairs = map(json.loads, read(folder / "math_pairs" / "gsm8k_model_solutions.jsonl").splitlines())
    solved = [Answer(pair["pred"], pair["gold"], True) for pair in pairs if pair["label"]]
    return with_wrong({"MATH": boxed, "GSM8K": solved})


def embedded_answers() -> dict[str, list[Answer]]:
    from ruyi_rl.data.arithmetic import arithmetic_options, generate

    rows, _ = generate(arithmetic_options({"wrong": {}}), 1)
    return with_wrong({"sums": [Answer(row["completion"][0]["content"], row["answer"], True) for row in rows]})


def with_wrong(right: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
    """Each set, and beside it the same with the answers exchanged between rows."""
    found = {}
    for name, rows in right.items():
        away = len(rows) // 2
        exchanged = zip(rows, rows[away:] + rows[:away], strict=True)
        found[f"{name}, right"] = rows
        found[f"{name}, wrong"] = [Answer(b.text, a.gold, False) for a, b in exchanged if a.gold != b.gold]
    return found


def humaneval(folder: Path) -> list[Program]:
    """HumanEval's reference solutions."""
    found = []
    for row in map(json.loads, read(folder / "humaneval" / "HumanEval.jsonl.gz").splitlines()):
        text = row["prompt"] + row["canonical_solution"]
        tests = {"test": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
        found.append(Program(text, tests, f"{text}\n{row['test']}\ncheck({row['entry_point']})\n"))
    return found


def embedded_programs() -> list[Program]:
    from ruyi_rl.data.toy_code import generate, toy_code_options

    found = []
    rows, _ = generate(toy_code_options({"train_problems": 164, "wrong": {}}), 1)
    for row in rows:
        text, calls = row["completion"][0]["content"], row["tests"]["calls"]
        checks = [f"assert f({', '.join(map(repr, call['args']))}) == {call['output']!r}" for call in calls]
        found.append(Program(text, row["tests"], "\n".join([text, *checks, ""])))
    return found


def read(file: Path) -> str:
    if not file.is_file():
        raise SystemExit(f"no {file}: name the folder with --data, or take the embedded tasks' rows with --embedded")
    return gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()


# Mathematical answers.


def plain_math_verify(rows: Sequence[Answer]) -> list[float]:
    """math-verify as its documentation has it, with its own time limits."""
    from math_verify import parse, verify

    return [float(verify(parse(rf"\boxed{{{bare(row.gold)}}}"), parse(row.text))) for row in rows]


def bare(gold: str) -> str:
    return re.sub(r"^\$+|\$+$", "", gold.strip())


def trl_accuracy(rows: Sequence[Answer]) -> list[float | None]:
    from trl.rewards import accuracy_reward

    return accuracy_reward([[{"content": row.text}] for row in rows], [row.gold for row in rows])


class Executor:
    """A function over rows in worker processes that have already imported what it needs."""

    def __init__(self, function: Callable[[Sequence[Answer]], list], workers: int):
        self.function, self.workers = function, workers
        context = multiprocessing.get_context("spawn")
        self.pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_quiet, initargs=(function,))
        list(self.pool.map(function, [[Answer("1", "1", True)]] * workers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def __call__(self, rows: Sequence[Answer]) -> list[float | None]:
        parts = [rows[start : start + 16] for start in range(0, len(rows), 16)]
        return [reward for part in self.pool.map(self.function, parts) for reward in part]


def _quiet(function: Callable[[Sequence[Answer]], list]) -> None:
    logging.disable(logging.WARNING)
    function([Answer("1", "1", True)])


def ours(rows: Sequence[Answer], pool: RewardPool) -> list[float | None]:
    return pool.score([row.text for row in rows], {"answer": [row.gold for row in rows]}).rewards


def math_pool(workers: int) -> RewardPool:
    return RewardPool("math_answer", "rewards/math_answer.py", limits=PoolLimits(workers=workers))


def judged(answers: Mapping[str, Sequence[Answer]], workers: int, rounds: int) -> list[Row]:
    """`math_answer`, math-verify and TRL's accuracy_reward on the same rows."""
    with ExitStack() as stack:
        contestants = {
            "math-verify": stack.enter_context(Executor(plain_math_verify, workers)),
            "TRL accuracy_reward": stack.enter_context(Executor(trl_accuracy, workers)),
            "math_answer": partial(ours, pool=stack.enter_context(math_pool(workers))),
        }
        return [
            replace(row, workers=workers)
            for name, rows in answers.items()
            for row in raced(name, contestants, rows, rounds, "math-verify")
        ]


def scaling(answers: Mapping[str, Sequence[Answer]], counts: Sequence[int], rounds: int) -> list[Row]:
    """`math_answer` with each number of workers, as a ratio to one."""
    with ExitStack() as stack:
        contestants = {str(count): partial(ours, pool=stack.enter_context(math_pool(count))) for count in counts}
        return [
            replace(row, contestant="math_answer", workers=int(row.contestant))
            for name, rows in answers.items()
            for row in raced(name, contestants, rows, rounds, "1")
        ]


def raced(
    name: str, contestants: Mapping[str, Callable], rows: Sequence[Answer], rounds: int, baseline: str
) -> list[Row]:
    """Every contestant judges the same rows, another share of them in each round. The rows' `workers` are left at 0."""
    verdicts: dict[str, list[bool]] = {contestant: [] for contestant in contestants}

    def run(contestant: str, shares: Iterator[Sequence[Answer]]) -> int:
        share = next(shares)
        rewards = contestants[contestant](share)
        verdicts[contestant] += [(reward == 1.0) == row.right for row, reward in zip(share, rewards, strict=True)]
        return len(share)

    # The first share wakes all workers up.
    size = max(1, len(rows) // (rounds + 1))
    shares = [rows[start : start + size] for start in range(0, size * (rounds + 1), size)]
    runs = {contestant: partial(run, contestant, iter(shares)) for contestant in contestants}
    for wake_up in runs.values():
        wake_up()
    measured = in_turn(runs, rounds, baseline)
    return [
        Row(name, contestant, 0, *spread(*measured[contestant]), statistics.fmean(verdicts[contestant]))
        for contestant in contestants
    ]


def spread(speeds: Sequence[float], ratios: Sequence[float]) -> tuple[float, float, float, float]:
    return statistics.median(speeds), min(speeds), max(speeds), statistics.median(ratios)


# Programs.


def executed(programs: Sequence[Program], workers: int, rounds: int) -> list[Row]:
    """Programs with their tests: plain, confined, and confined with warm interpreters."""
    with ExitStack() as stack:
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
        contestants = {PLAIN: partial(run_plainly, programs, threads)}
        for name, warm in (("code_tests, cold", False), ("code_tests, warm", True)):
            limits = PoolLimits(timeout=2 * SECONDS, workers=workers)
            pool = stack.enter_context(RewardPool(name, "rewards/code_tests.py", {"warm": warm}, limits))
            contestants[name] = partial(run_confined, programs, pool)
        # Proved first: all pass, with every contestant. It wakes the workers up, too.
        passed = {name: run() for name, run in contestants.items()}
        measured = in_turn({name: partial(_rows_of, run, programs) for name, run in contestants.items()}, rounds, PLAIN)
    return [
        Row("solutions", name, workers, *spread(*measured[name]), passed[name] / len(programs)) for name in contestants
    ]


def _rows_of(run: Callable[[], int], programs: Sequence[Program]) -> int:
    run()
    return len(programs)


def run_plainly(programs: Sequence[Program], threads: concurrent.futures.Executor) -> int:
    """How many pass."""
    return sum(threads.map(passes_plainly, programs))


def passes_plainly(program: Program) -> bool:
    command = [sys.executable, "-I", "-c", program.plain]
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(command, check=False, timeout=SECONDS, **silent).returncode == 0


def run_confined(programs: Sequence[Program], pool: RewardPool) -> int:
    """How many pass."""
    texts, tests = [program.text for program in programs], [program.tests for program in programs]
    return sum(reward == 1.0 for reward in pool.score(texts, {"tests": tests}).rewards)


def show(title: str, rows: Sequence[Row], baseline: str) -> None:
    print(f"\n{title} (ratio: to {baseline}, in the same round)")
    print(f"{'rows':16} {'contestant':20} {'workers':>7} {'rows/s':>8} {'min - max':>15} {'ratio':>7} {'right':>8}")
    for row in rows:
        bounds = f"{row.lowest:.0f} - {row.highest:.0f}"
        print(
            f"{row.rows:16} {row.contestant:20} {row.workers:7} {row.speed:8.0f} {bounds:>15} {row.ratio:7.2f} "
            f"{100 * row.accuracy:7.2f}%",
            flush=True,
        )
