"""Benchmarks against a baseline in the same run: our training against TRL's own trainers on the exported branches, our
rollout back ends against bare vLLM, our rewards against math-verify, TRL and plain subprocesses.

    python scripts/bench.py grpo [--shape ruyi2] [--cases 256,64,8 …] [--rounds 5] [--threads 4] [--json FILE] [--check]
    python scripts/bench.py sft  [--shape ruyi2] [--cases 4,256 …]    [--rounds 5] [--threads 4] [--json FILE] [--check]
    python scripts/bench.py expansion [--shape ruyi2] [--case 4,256] [--rounds 5] [--threads 4] [--json FILE]
    python scripts/bench.py growth [--rounds 3] [--threads 4] [--json FILE] [--figure FILE]
    python scripts/bench.py sync [--shape ruyi2] [--servers] [--rounds 7] [--json FILE] [--check]
    python scripts/bench.py rollout [--rounds 7] [--servers] [--json FILE]
    python scripts/bench.py rewards [--rounds 5] [--workers 4] [--data FOLDER | --embedded] [--json FILE]

Results are proved equal first, then timed in turn, round by round; medians, spread and ratios are printed. Figures of
one machine at one time compare with each other, not with those of another run.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import bench_expansion
import bench_growth
import bench_rewards
import bench_rollout
import bench_sync
import bench_training

COMMANDS = {
    "sft": (bench_training.add_sft_arguments, bench_training.sft, "a joint SFT step against TRL's on each branch"),
    "grpo": (
        bench_training.add_grpo_arguments,
        bench_training.grpo,
        "a GRPO step of all exits against TRL's on each branch",
    ),
    "expansion": (
        bench_expansion.add_arguments,
        bench_expansion.expansion,
        "a step of an expanded exit's new parts against one of its whole branch",
    ),
    "growth": (
        bench_growth.add_arguments,
        bench_growth.growth,
        "how a GRPO step's time and memory grow with samples, length, exits and vocabulary",
    ),
    "sync": (bench_sync.add_arguments, bench_sync.sync, "new weights for all exits' engines against whole branches"),
    "rollout": (bench_rollout.add_arguments, bench_rollout.rollout, "our rollout back ends against bare vLLM"),
    "rewards": (
        bench_rewards.add_arguments,
        bench_rewards.rewards,
        "our rewards against math-verify, TRL and plain subprocesses",
    ),
}


def main() -> None:
    # Before vLLM is imported, which reads them then.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, (add_arguments, _, help) in COMMANDS.items():
        of_command = commands.add_parser(command, help=help)
        add_arguments(of_command)
        of_command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    _, run, _ = COMMANDS[arguments.command]
    found = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
