"""Kills runs at random moments, starts the same command again, and compares with runs that nobody disturbed.

    python scripts/kill_anywhere.py [--kills 20] [--seed 1] [--signal KILL] [--how tree,launcher,rank] [--cases WORDS]
                                    [--rollout transformers] [--jobs 2] [--folder FOLDER]

Every training stage, on one rank and on two with ZeRO-2 and ZeRO-3: what the continued run has left must equal, bit by
bit, what the undisturbed one has: each tensor of the family, every row of the metrics but its times, the summary and
the failed rewards. A run is killed in the phase that was hit least so far; one in four is killed twice. With `--signal`
TERM or INT it must end with 143 or 130 and say how to go on.

Prints a line a run; the exit status is 1 where one is not the same.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from kill_cases import STEPS, Case, cases, prepare, write_reward
from kill_compare import differences
from kill_moments import Moment, Moments, Visit, newest_phase, rest, visits, wait_for

from ruyi_rl.training.callbacks import read_metrics

ROOT = Path(__file__).resolve().parents[1]
HOWS = {"KILL": ("tree", "launcher", "rank"), "TERM": ("command", "everyone", "twice"), "INT": ("command", "twice")}
"""Whom a signal is sent to: all processes of a run; what was started, which with several ranks is their launcher; one
rank; all of them, as SLURM does; and what was started, a second time after `SECOND` seconds."""
SECOND = 1.5
END_SECONDS = 300
"""What a run may take to end after it was killed in part or told to stop."""
LEFT_SECONDS = 15
"""How soon after a run's end the last of its processes must be gone."""


@dataclass
class Started:
    """A command that runs."""

    process: subprocess.Popen
    trace: Path
    log: Path
    since: float = field(default_factory=time.time)

    def running(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The command's process, its ranks, and whatever these have started."""
        try:
            command = psutil.Process(self.process.pid)
            return [command, *command.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Result:
    """One run that was killed and continued."""

    case: Case
    moments: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hits: int = 0
    redone: int = 0
    """Optimiser steps that were done twice, as far as they were logged."""
    seconds: float = 0.0
    """Of all attempts together, over those of the undisturbed run."""


class Kills:
    """Starts, kills and compares runs in one folder."""

    def __init__(self, folder: Path, number: signal.Signals, hows: Sequence[str], seed: int):
        self.folder, self.number, self.hows = folder, number, hows
        self.moments = Moments(random.Random(seed))
        self.seen: dict[str, tuple[list[Visit], float]] = {}
        write_reward(folder / "config")

    def start(self, command: Sequence[str], name: str) -> Started:
        """Starts `python -m ruyi_rl`; `name` is that of its log and its trace."""
        trace, log = self.folder / "traces" / name, self.folder / "logs" / f"{name}.txt"
        trace.mkdir(parents=True)
        log.parent.mkdir(exist_ok=True)
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "RUYI_RL_TRACE": str(trace)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "scripts" / "kill_trace"), str(ROOT)])
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ruyi_rl", *command],
                env=environment,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return Started(process, trace, log)

    def command(self, case: Case, folder: Path) -> list[str]:
        return case.command(folder, self.folder / "prepared", self.folder / "config")

    def undisturbed(self, case: Case) -> None:
        """The run that the others of this case are compared with.

        Raises:
            RuntimeError: it fails.
        """
        run = self.start(self.command(case, self.folder / "whole" / case.slug), f"whole-{case.slug}")
        if run.process.wait() != 0:
            raise RuntimeError(f"{case.name} fails undisturbed: {run.log.read_text()[-3000:]}")
        ended = time.time()
        self.seen[case.name] = visits(run.trace, run.since, ended), ended - run.since

    def disturbed(self, case: Case, number: int, times: int, plan: Moment, how: str) -> Result:
        """One run that is killed so many times and then left to end."""
        result, start = Result(case), time.time()
        folder = self.folder / "runs" / f"{number}-{case.slug}"
        left: list[psutil.Process] = []
        reached = 0  # by the attempt before
        for attempt in range(times):
            run = self.start(self.command(case, folder), f"{number}-{case.slug}-{attempt}")
            if not wait_for(plan, run.trace, run.running):
                run.process.wait()
                break
            phase, step = newest_phase(run.trace), last_step(folder / case.stage)
            result.redone += steps_again(run.log, reached)
            reached = step
            left += self.strike(run, how, result)
            result.hits += 1
            shown = plan.label if phase in plan.label else f"{plan.label}: {phase}"
            result.moments.append(f"{how}, {shown}, step {step}")
            seen, seconds = self.seen[case.name]
            plan = self.moments.next(rest(seen, newest_checkpoint(folder / case.stage) / STEPS), seconds)
        run = self.start(self.command(case, folder), f"{number}-{case.slug}-last")
        if run.process.wait() != 0:
            result.problems.append(f"going on ended with {run.process.returncode}: {last_lines(run.log)}")
        else:
            result.problems += differences(folder / case.stage, self.folder / "whole" / case.slug / case.stage)
        result.redone += steps_again(run.log, reached)
        _, alive = psutil.wait_procs(left, timeout=LEFT_SECONDS)
        result.problems += [f"left behind: {each}" for each in alive]
        result.seconds = time.time() - start - self.seen[case.name][1]
        if not result.problems:
            shutil.rmtree(folder)
        return result

    def strike(self, run: Started, how: str, result: Result) -> list[psutil.Process]:
        """Sends the signal and, but where the command itself was killed, waits for its end; who was there."""
        family = run.family()
        ranks = [each for each in family[1:] if is_rank(each)]
        if how == "rank" and ranks:
            targets = [self.moments.draw.choice(ranks)]
        else:
            targets = family if how in ("tree", "everyone") else family[:1]
        for number in [signal.SIGCONT, self.number] if how == "everyone" else [self.number]:
            for each in targets:
                send(each, number)
        if how == "twice":
            time.sleep(SECOND)
            for each in targets:
                send(each, self.number)
        try:
            status = run.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            result.problems.append(f"still running {END_SECONDS} s after {how}")
            for each in [*family, *run.family()]:
                send(each, signal.SIGKILL)
            status = run.process.wait()
        said = run.log.read_text(errors="replace")
        if "Traceback" in said:
            result.problems.append(f"a traceback on the console after {how}: {run.log}")
        if self.number != signal.SIGKILL and status != 0:
            # The second signal may come when Python is ending and has no handlers any more.
            if status != 128 + self.number and (how, status) != ("twice", -self.number):
                result.problems.append(f"ended with {status} after {how}: {last_lines(run.log)}")
            elif "Go on with: python -m ruyi_rl" not in said and newest_phase(run.trace) != "loading":
                result.problems.append(f"did not say how to go on after {how}")
        return family


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def is_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ() and "ruyi_rl" in process.cmdline()
    except psutil.Error:
        return False


def last_step(stage: Path) -> int:
    """The newest step in the metrics."""
    rows = read_metrics(stage / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def steps_again(log: Path, reached: int) -> int:
    """How many of the steps that the attempt before has reached the one of this log has done again."""
    text = log.read_text(errors="replace")
    if found := re.search(r"going on from .*checkpoint-(\d+)", text):
        return max(0, reached - int(found[1]))
    return reached if "before it starts" in text else 0


def newest_checkpoint(stage: Path) -> int:
    steps = [path.name.removeprefix("checkpoint-") for path in stage.glob("checkpoint-*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def last_lines(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-4:])[-600:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signal", choices=HOWS, default="KILL")
    parser.add_argument("--how", help="some of those of the signal, with commas between them")
    parser.add_argument("--cases", default="", help="only cases whose names hold all of these words")
    parser.add_argument("--moment", help="only moments of this phase")
    parser.add_argument("--rollout", default="transformers", choices=("transformers", "vllm", "vllm_server"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--folder", type=Path, help="kept; without it a temporary one, which is not")
    options = parser.parse_args()
    if options.folder is not None:
        return run(options, options.folder.absolute())
    with tempfile.TemporaryDirectory(prefix="kill_anywhere_") as folder:
        return run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> int:
    hows = options.how.split(",") if options.how else HOWS[options.signal]
    kills = Kills(folder, signal.Signals[f"SIG{options.signal}"], hows, options.seed)
    draw = random.Random(options.seed)
    chosen = [case for case in cases(options.rollout) if all(word in case.name for word in options.cases.split())]
    draw.shuffle(chosen)
    chosen = chosen[: options.kills]
    prepared = kills.start(prepare(folder / "prepared", folder / "config"), "prepared")
    if prepared.process.wait() != 0:
        print(prepared.log.read_text())
        return 1
    results: list[Result] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(kills.undisturbed, chosen))
        # A run may end before the moment that was meant for it.
        while (missing := options.kills - sum(result.hits for result in results)) > 0:
            runs, number = [], len(results)
            while missing > 0:
                case = chosen[number % len(chosen)]
                times = min(missing, 2 if number % 4 == 3 else 1)
                how = hows[number % len(hows)] if case.ranks > 1 or hows[number % len(hows)] != "rank" else "tree"
                plan = kills.moments.next(*kills.seen[case.name], options.moment)
                runs.append(pool.submit(kills.disturbed, case, number, times, plan, how))
                number, missing = number + 1, missing - times
            for each in as_completed(runs):
                results.append(each.result())
                show(len(results), results[-1])
    wrong, hits = sum(bool(result.problems) for result in results), sum(result.hits for result in results)
    print(f"{len(results) - wrong} of {len(results)} runs, with {hits} kills, left the same as undisturbed")
    return 1 if wrong else 0


def show(number: int, result: Result) -> None:
    """A line of the table."""
    print(
        f"{number:3} {result.case.name:34} {' | '.join(result.moments) or 'not disturbed':60} "
        f"{result.redone} steps again, {result.seconds:+.0f} s: {'; '.join(result.problems) or 'the same'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
