"""DaE against training without it, at equal cost, on the embedded family: a table and curves.

    python scripts/dae.py --seeds 1 2 3 --jobs 2 --picture docs/dae.png

All three ways start from the same joint SFT of a seed's `experiment=dae_tiny` run:

    dae    expand the small exit, SFT and GRPO of the new blocks, its norm and its head; compress, recover
    joint  more SFT and GRPO of all exits at once
    alone  more SFT and GRPO of the small exit's whole branch, whatever becomes of the others

and the last two take as many steps as cost what DaE's two trainings cost. Cost is in matrix operations: a layer's
backward is twice its forward, a head's three times (chunked kernels recompute the logits), a frozen layer has none;
attention, prompts and the optimiser count nothing. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ruyi_rl.training.callbacks import read_metrics

WAYS = ("dae", "joint", "alone")
EXIT = "small"
SAMPLES, PROMPTS = 8, {"dae": 48, "joint": 24, "alone": 48}
"""Of a GRPO step; `joint` asks each prompt of three exits."""
SFT_STEPS, GRPO_STEPS = 300, 36
"""Of DaE, as in conf/experiment/dae_tiny.yaml."""
LEARNING_RATES = {"joint": "6e-4", "alone": "6e-4"}
"""Of GRPO: the better of 2e-4 and 6e-4 on seed 1."""


@dataclass(frozen=True)
class Cost:
    """Operations a token, by the number of layers and the sizes of matrices."""

    layer: int
    head: int
    depths: dict[str, int]
    """Exit -> layers of its branch before the expansion, shallowest first."""
    blocks: int

    def forward(self, layers: int, heads: int = 1) -> int:
        return 2 * (layers * self.layer + heads * self.head)

    def backward(self, layers: int, heads: int = 1) -> int:
        return 4 * layers * self.layer + 6 * heads * self.head

    def sft(self, way: str) -> int:
        """Of a training token."""
        if way == "dae":
            return self.forward(self.depths[EXIT] + self.blocks) + self.backward(self.blocks)
        layers, heads = self.depths[EXIT], 1
        if way == "joint":
            layers, heads = max(self.depths.values()) - 1 + len(self.depths), len(self.depths)
        return self.forward(layers, heads) + self.backward(layers, heads)

    def grpo(self, way: str) -> dict[str, int]:
        """Exit -> of a completion token: drawn, and trained on."""
        if way == "dae":
            return {EXIT: 2 * self.forward(self.depths[EXIT] + self.blocks) + self.backward(self.blocks)}
        exits = self.depths if way == "joint" else [EXIT]
        return {name: 2 * self.forward(self.depths[name]) + self.backward(self.depths[name]) for name in exits}

    def steps(self, way: str) -> tuple[int, int]:
        """Steps of SFT and of GRPO that cost what DaE's do, if rows and completions are as long."""
        sft = SFT_STEPS * self.sft("dae") / self.sft(way)
        grpo = {name: PROMPTS[name] * sum(self.grpo(name).values()) for name in ("dae", way)}
        return round(sft), round(GRPO_STEPS * grpo["dae"] / grpo[way])


def cost_of(family: Path) -> Cost:
    """From the expanded family's configuration."""
    config = json.loads((family / "config.json").read_text())
    attention = config["head_dim"] * (2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"])
    layer = config["hidden_size"] * (attention + 3 * config["intermediate_size"])
    exits = dict(zip(config["exit_names"], config["early_exit_points"]))
    depths = {name: position + 1 for name, position in exits.items()}
    return Cost(layer, config["hidden_size"] * config["vocab_size"], depths, sum(config["expansion_blocks"]))


def run(folder: Path, seed: int, *options: str) -> None:
    """One command of ruyi_rl in a run folder; its output goes to a file beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "ruyi_rl", f"seed={seed}", f"run_dir={folder}", *options]
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise SystemExit(f"{' '.join(words)} ended with status {status}; see {log.name}")
    print(f"done: {' '.join(words[3:])}", flush=True)


def train(runs: Path, way: str, seed: int) -> None:
    """One way from the joint SFT on; DaE's own run makes that first."""
    base, folder = runs / f"dae-{seed}", runs / f"{way}-{seed}"
    if way == "dae":
        run(base, seed, "experiment=dae_tiny")
        return
    sft, grpo = cost_of(base / "expand").steps(way)
    rows = PROMPTS[way] * SAMPLES * (3 if way == "joint" else 1)
    only = [] if way == "joint" else [f"{block}.exits=[{EXIT}]" for block in ("sft", "grpo")]
    run(folder, seed, "stage=sft", f"start_from={base / 'sft'}", f"sft.trainer.max_steps={sft}", *only)
    grpo_options = (
        f"grpo.trainer.max_steps={grpo}",
        f"grpo.trainer.learning_rate={LEARNING_RATES[way]}",
        f"grpo.trainer.per_device_train_batch_size={rows}",
    )
    run(folder, seed, "stage=grpo", f"start_from={folder / 'sft'}", *grpo_options, *only)
    run(folder, seed, "stage=eval", f"start_from={folder / 'grpo'}")


def summary(folder: Path, stage: str) -> dict:
    return json.loads((folder / stage / "summary.json").read_text())


def training_cost(cost: Cost, folder: Path, way: str) -> tuple[list[float], list[float]]:
    """Operations up to and with each logged step of the second SFT and, going on from there, of GRPO."""
    sft = read_metrics(folder / ("expanded_sft" if way == "dae" else "sft") / "metrics.jsonl")
    spent = [row["num_tokens"] * cost.sft(way) for row in sft]
    drawn, total = [], spent[-1]
    rows = PROMPTS[way] * SAMPLES
    for row in read_metrics(folder / "grpo" / "metrics.jsonl"):
        total += sum(rows * row[f"{name}/completions/mean_length"] * each for name, each in cost.grpo(way).items())
        drawn.append(total)
    return spent, drawn


def table(runs: Path, seeds: Sequence[int]) -> str:
    """Pass rates in percent, mean of the seeds ± its standard error, as a Markdown table."""

    def spread(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
        mean = f"{factor * statistics.fmean(values):.{digits}f}"
        if len(values) < 2:
            return mean
        return f"{mean} ± {factor * statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"

    names = list(cost_of(runs / f"dae-{seeds[0]}" / "expand").depths)
    lines = [
        "| | small, sampled | small, greedy | " + " | ".join(names[1:]) + " | 10¹² operations |",
        "|---|---|---|" + "---|" * len(names),
    ]

    def line(label: str, small: Sequence[dict], others: Sequence[dict], spent: Sequence[float]):
        cells = [spread([exit[key] for exit in small]) for key in ("pass_rate", "greedy")]
        cells += [spread([exits[name]["pass_rate"] for exits in others]) for name in names[1:]]
        cells += [spread(spent, 1e-12, 2) if spent else ""]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    def held_out(way: str, stage: str) -> list[dict]:
        return [summary(runs / f"{way}-{seed}", stage)["held_out"]["exits"] for seed in seeds]

    start = held_out("dae", "sft")
    line("joint SFT, where all start", [exits[EXIT] for exits in start], start, [])
    for way, label in (("joint", "all exits"), ("alone", "the small exit alone"), ("dae", "DaE, not compressed")):
        ends = held_out(way, "eval")
        small = held_out("dae", "grpo") if way == "dae" else ends
        spent = []
        for seed in seeds:
            folder = runs / f"{way}-{seed}"
            spent.append(training_cost(cost_of(runs / f"dae-{seed}" / "expand"), folder, way)[1][-1])
        line(label, [exits[EXIT] for exits in small], ends, spent)
    ends = held_out("dae", "eval")
    line("DaE, compressed and recovered", [exits[EXIT] for exits in ends], ends, [])
    return "\n".join(lines)


def draw(runs: Path, seeds: Sequence[int], picture: Path) -> None:
    """The small exit's SFT loss and GRPO reward against the cost: of each way the seeds' mean and range."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = {"dae": "#0072B2", "joint": "#E69F00", "alone": "#666666"}
    labels = {"dae": "DaE", "joint": "all exits", "alone": "the small exit alone"}
    for panel, stage, metric in ((panels[0], 0, f"{EXIT}/loss"), (panels[1], 1, f"{EXIT}/reward")):
        for way in WAYS:
            lines = []
            for seed in seeds:
                folder = runs / f"{way}-{seed}"
                name = "grpo" if stage else "expanded_sft" if way == "dae" else "sft"
                spent = training_cost(cost_of(runs / f"dae-{seed}" / "expand"), folder, way)[stage]
                values = [row[metric] for row in read_metrics(folder / name / "metrics.jsonl")]
                lines.append((np.array(spent) / 1e12, np.array(values)))
            ends = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
            grid = np.linspace(*ends, 60)
            several = np.stack([np.interp(grid, x, y) for x, y in lines])
            panel.plot(grid, several.mean(0), color=colours[way], label=labels[way])
            panel.fill_between(grid, several.min(0), several.max(0), color=colours[way], alpha=0.2, linewidth=0)
        panel.set_xlabel("training, 10¹² operations")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("SFT loss of the small exit")
    panels[1].set_ylabel("GRPO reward of the small exit")
    panels[1].legend(loc="lower right")
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/dae"), help="folder for the run folders")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; set OMP_NUM_THREADS accordingly")
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as jobs:
        for ways in (("dae",), ("joint", "alone")):  # the others start from DaE's first stages
            asked = [(way, seed) for way in ways for seed in options.seeds]
            list(jobs.map(lambda job: train(options.runs, *job), asked))
    print(table(options.runs, options.seeds))
    if options.picture:
        draw(options.runs, options.seeds, options.picture)


if __name__ == "__main__":
    main()
