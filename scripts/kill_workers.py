"""Kills vLLM servers of a running GRPO and compares what is trained with an undisturbed run.

    python scripts/kill_workers.py [--runs 10] [--folder FOLDER]

Each run of four steps loses a random process of a random server (SIGKILL) during the second step's generation, during
the third's sync and before the fourth. It must end with the rewards, the tokens and the weights of a run on engines in
the training process that nobody disturbs: no sample lost, doubled or drawn otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.pipeline import run_stages
from ruyi_rl.rollout.servers.pool import Pool
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import read_metrics

SETTINGS = [
    "stage=grpo",
    "sft.trainer.max_steps=40",
    "evaluation.problems=0",
    "grpo.trainer.max_steps=4",
    "grpo.trainer.per_device_train_batch_size=96",
    "grpo.trainer.logging_steps=1",
    "grpo.trainer.save_strategy=no",
]


class Killer:
    """Kills one process a phase: at step 2 in a generation, at step 3 in a sync, before step 4 between the two."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.killed: list[str] = []
        self._calls = {"sync": 0, "generate": 0}

    def watch(self, pool: Pool, phase: str) -> None:
        """To be called when the pool begins a phase."""
        self._calls[phase] += 1
        if phase == "generate" and self._calls[phase] == 2:
            self._later(pool, "generating", self.draw.uniform(0.02, 0.25))
        elif phase == "sync" and self._calls[phase] == 3:
            self._later(pool, "syncing", self.draw.uniform(0.0, 0.04))
        elif phase == "sync" and self._calls[phase] == 4:
            self._kill(pool, "between steps")

    def _later(self, pool: Pool, when: str, seconds: float) -> None:
        threading.Timer(seconds, self._kill, (pool, when)).start()

    def _kill(self, pool: Pool, when: str) -> None:
        worker = self.draw.choice([worker for worker in pool.workers if worker.up])
        commands = {
            process: " ".join(process.cmdline())
            for process in psutil.Process(worker.server._guardian.pid).children(recursive=True)
        }
        # Python's tracker of shared memory is not missed by anyone.
        victim = self.draw.choice([process for process, words in commands.items() if "resource_tracker" not in words])
        part = "server" if "api_server" in commands[victim] else "engine"
        self.killed.append(f"{worker.name}'s {part} while {when}")
        os.kill(victim.pid, signal.SIGKILL)


def train(folder: Path, name: str, start: Path | None, *more: str) -> Path:
    """One run of the stage; returns its folder."""
    settings = [*SETTINGS, f"run_dir={folder / name}", *more]
    if start is not None:
        settings.append(f"start_from={start}")
    run_stages(to_run_config(compose_config(settings)), [])
    return folder / name / "grpo"


def disturbed(folder: Path, name: str, start: Path, seed: int) -> tuple[Path, Killer, float]:
    """A run on servers that are killed; returns its folder, who killed what, and its seconds."""
    killer = Killer(seed)
    originals = {phase: getattr(Pool, phase) for phase in ("sync", "generate")}

    def watched(phase: str):
        def method(pool: Pool, *arguments):
            killer.watch(pool, phase)
            return originals[phase](pool, *arguments)

        return method

    begun = time.monotonic()
    for phase in originals:
        setattr(Pool, phase, watched(phase))
    try:
        run = train(folder, name, start, "rollout=vllm_server", "+rollout.workers.small=2")
    finally:
        for phase, original in originals.items():
            setattr(Pool, phase, original)
    return run, killer, time.monotonic() - begun


def differences(run: Path, reference: Path) -> list[str]:
    """What is not as in the reference."""
    found = []
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, reference)]
    for key in ("reward", "num_tokens", "completions/mean_length"):
        values = [[row[key] for row in log] for log in rows]
        if values[0] != values[1]:
            found.append(f"{key}: {values[0]}, not {values[1]}")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, reference))
    largest = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    if largest > 1e-3:
        found.append(f"weights differ by {largest:.2g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="keeps the runs; by default they are deleted")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        reference = train(folder, "undisturbed", None, "rollout=vllm")
        start = folder / "undisturbed" / "sft"
        for number in range(arguments.runs):
            run, killer, seconds = disturbed(folder, f"run{number}", start, seed=number)
            problems = differences(run, reference)
            exits = StageFolder(run).summary()["rollout"]["exits"].values()
            given_up = round(sum(exit["failures"] for exit in exits))
            failed += bool(problems)
            print(
                f"run {number}: {seconds:.0f} s, {given_up} workers given up, killed {'; '.join(killer.killed)}: "
                + ("; ".join(problems) or "as undisturbed"),
                file=sys.stderr,
                flush=True,
            )
    print(f"{arguments.runs - failed} of {arguments.runs} runs are as the undisturbed one")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
