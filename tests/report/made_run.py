"""A run's folder as stages would leave it, made in a moment: for tests of what reads one."""

import json
import math
import random
from pathlib import Path

from ruyi_rl.run_folder import Manifest, StageFolder, write_json, write_text

EXITS = ("small", "medium", "large")
CONFIG = """\
name: {name}
seed: 3
stages: [init, sft, grpo, eval]
model: {{name: tiny, exits: {{large: 4, small: 1, medium: 2}}}}
data: {{name: arithmetic}}
reward: {{name: math}}
grpo: {{trainer: {{hub_token: '***'}}}}
"""


def made_run(folder: Path, exits=EXITS, stages=("init", "sft", "grpo", "eval"), steps=40, name="made", status="done"):
    """Writes all stages, done but for the last one, whose `status` is as asked; returns the folder."""
    for place, stage in enumerate(stages):
        ended = status if stage == stages[-1] else "done"
        left(folder, stage, ended, f"2026-01-01T0{place}:00:00+00:00", CONFIG.format(name=name))
        if stage in ("sft", "grpo"):
            rows = [row(stage, step, exits) for step in range(1, steps + 1)]
            write_text(folder / stage / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in rows))
            write_completions(folder / stage, exits, f"held-out pass rate after {stage}")
        if ended == "done":
            write_json(folder / stage / "summary.json", {"stage": stage, **summary(stage, exits)})
    return folder


def left(folder: Path, stage: str, status: str = "done", started: str = "2026-01-01T00:00:00+00:00", config: str = ""):
    """A stage's manifest and config, and nothing else."""
    manifest = Manifest(stage, status, "0123456789ab", {}, None, None, 3, 1, "off", {"ruyi_rl": "0"}, started)
    manifest.seconds = 75.0
    manifest.message = "the disk is full" if status == "failed" else None
    StageFolder(folder / stage).write_manifest(manifest)
    write_text(folder / stage / "config.yaml", config)
    return manifest


def row(stage, step, exits):
    """One line of metrics: known ones, one of a function's own, one that never changes."""
    noise = random.Random(step)
    found = {"phase": 1, "step": step, "learning_rate": 1e-4 / step, "grad_norm": 1 + noise.random()}
    found |= {"time/rollout": 2.0, "time/update": 1.0, "time/save": 0.5 if step % 10 == 0 else 0.0}
    for depth, exit in enumerate(exits):
        if stage == "sft":
            found |= {f"{exit}/loss": 4 / math.sqrt(step) + 0.1 * noise.random()}
            continue
        found |= {
            f"{exit}/reward": min(1.0, 0.2 + 0.01 * step + 0.1 * depth + 0.1 * noise.random()),
            f"{exit}/entropy": 1 / step + 0.1 * depth,
            f"{exit}/rewards/mine/mean": 0.3 + 0.1 * noise.random(),
            f"{exit}/completions/clipped_ratio": 0.0,
        }
        if step % 10 == 0:
            found |= {f"{exit}/eval/pass_rate": 0.4 + 0.005 * step, f"{exit}/eval/standard_error": 0.03}
    return found


def summary(stage, exits):
    sizes = {exit: {"layers": 2 + n, "parameters": 1000 * (n + 1)} for n, exit in enumerate(exits)}
    if stage == "init":
        return {"exits": sizes}
    score = {"standard_error": 0.03, "mean_tokens": 12.0, "truncated": 0.0}
    held_out = {
        "measurement": "same",
        "problems": 64,
        "samples": 4,
        "temperature": 1.0,
        "exits": {exit: {"pass_rate": 0.6 + 0.1 * n, "greedy": 0.8, **score} for n, exit in enumerate(exits)},
    }
    if stage == "sft":
        for n, exit in enumerate(exits):
            held_out["exits"][exit]["pass_rate"] = 0.3 + 0.1 * n
        return {"exits": {exit: {"loss_first": 4.0, "loss_last": 1.0} for exit in exits}, "held_out": held_out}
    if stage == "eval":
        return {
            "exits": {exit: {**size, "bytes": 4 * size["parameters"]} for exit, size in sizes.items()},
            "held_out": held_out,
            "benchmarks": {"arithmetic": benchmark(exits)},
            "harness": {
                "arc": {"metric": "acc_norm", "exits": {e: {"value": 0.5, "standard_error": 0.02} for e in exits}}
            },
        }
    rewards = {"reward_first": 0.2, "reward_last": 0.7}
    before = {"pass_before_standard_error": 0.03, "greedy_before": 0.5}
    return {
        "exits": {e: {**rewards, **before, "pass_before": 0.3 + 0.1 * n} for n, e in enumerate(exits)},
        "held_out": held_out,
    }


def benchmark(exits):
    def interval(value):
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def point(n):
        return {"accuracy": 0.5 + 0.1 * n, "cost": 0.001 * (n + 1)}

    scores = {
        exit: {
            **{key: interval(0.5 + 0.1 * n) for key in ("greedy", "pass@1", "pass@4", "maj@4")},
            "mean_tokens": 12.5,
            "truncated": 0.01,
            "seconds": 3.0,
            "cost": 0.002 * (n + 1),
            "failures": 0,
        }
        for n, exit in enumerate(exits)
    }
    pairs = [{"exits": [exits[-1], exits[0]], "metric": key, **interval(0.2)} for key in ("greedy", "pass@1")]
    alone = {exit: point(n) for n, exit in enumerate(exits)}
    rule = {"problems": {"chosen_on": 32, "reported_on": 32}, "curve": [point(n) for n in (0, 0.5, 1.5, 2)]}
    routing = {
        "exits": alone,
        "cheapest_right": {**dict.fromkeys(exits, 10), "none": 4},
        "oracle": {"accuracy": interval(0.8), "cost": 0.0015},
        "frontier": [point(n) for n in (0, 1, 3)],
        "confidence": {**rule, "chosen": point(1.5)},
    }
    return {"problems": 64, "samples": 4, "exits": scores, "differences": pairs, "routing": routing}


def write_completions(folder, exits, occasion, completion=r"3+5=8;\boxed{8}", prompt="3+5=", benchmark="arithmetic"):
    """Two problems, greedy and two samples."""
    lines = [
        {
            "occasion": occasion,
            "benchmark": benchmark,
            "problem": problem,
            "exit": exit,
            "sample": sample,
            "prompt": prompt,
            "completion": completion,
            "reward": 1.0,
            "right": sample != 1,
            "tokens": 9,
            "finished": True,
        }
        for problem in range(2)
        for exit in exits
        for sample in ("greedy", 0, 1)
    ]
    write_text(folder / "completions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
