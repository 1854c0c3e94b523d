"""How far exported exits are from their family: every exit, merged and factored, of a tiny family and of one with 200 M
parameters, in float32 on this machine.

    python scripts/export_parity.py [--sizes tiny 200m] [--vllm]

Each family has random weights and three exits. The shallowest is expanded by two blocks and compressed by 40 %; the
logits of the exported folders, loaded anew, are compared with the family's on rows of random tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig, Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.stages.export import write_exports
from ruyi_rl.stages.exported import Target, exported_from

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4},
    "200m": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 13, "num_attention_heads": 12},
}
VOCABULARY = {"tiny": 267, "200m": 32_000}
EXITS = {"tiny": {"small": 1, "medium": 2, "large": 4}, "200m": {"small": 2, "medium": 6, "large": 12}}
LIMIT = 1e-5
"""What a difference is to stay below."""


def expanded_family(size: str) -> Family:
    """A family whose three exits disagree, its shallowest one expanded and compressed."""
    tokens = {"pad_token_id": 256, "eos_token_id": 258, "bos_token_id": None}
    heads = {"num_key_value_heads": SHAPES[size]["num_attention_heads"] // 2, "head_dim": 64}
    shape = Qwen3Config(vocab_size=VOCABULARY[size], initializer_range=0.05, **SHAPES[size], **heads, **tokens)
    family = Family.from_scratch(shape, EXITS[size], seed=1).expand("small", 2)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    rows = torch.randint(VOCABULARY[size], (24, 128), generator=generator)
    family.compress("small", ratio=0.4, calibration=[{"input_ids": rows}])
    family.generation_config = GenerationConfig(**tokens)
    return family.eval()


def measured(size: str, vllm: bool, console: Console) -> list[dict]:
    """What the marks of the exported folders say, one dict a folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "family"
        family = expanded_family(size)
        family.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        console.print(f"{size}: {sum(each.numel() for each in family.parameters()):,} parameters")
        del family
        targets = [Target(exit, "merged", Path(place) / exit) for exit in EXITS[size]]
        targets.append(Target("small", "factored", Path(place) / "factored"))
        write_exports(folder, targets, Console(quiet=True), vllm=vllm)
        return [exported_from(target.folder) for target in targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--vllm", action="store_true", help="compare vLLM's log-probs too")
    quiet_libraries()
    asked, console = parser.parse_args(), Console()
    table = Table("family", "exit", "format", "parameters", "logits by", "largest", "vLLM's log-probs by")
    worst = 0.0
    for size in asked.sizes:
        started = time.monotonic()
        for mark in measured(size, asked.vllm, console):
            worst = max(worst, mark["difference"])
            by_vllm = "–" if mark["vllm"] is None else f"{mark['vllm'].get('difference', float('nan')):.2g}"
            size_shown, figures = (
                f"{mark['parameters']:,}",
                (f"{mark['difference']:.2g}", f"{mark['largest_logit']:.3g}"),
            )
            table.add_row(size, mark["exit"], mark["format"], size_shown, *figures, by_vllm)
        console.print(f"{size}: {time.monotonic() - started:.1f} s")
    console.print(table)
    raise SystemExit(f"more than {LIMIT:g}" if worst > LIMIT else 0)


if __name__ == "__main__":
    main()
