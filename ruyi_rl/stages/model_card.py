"""The model card of an exported folder: the hub's front matter, and what a user has to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ruyi_rl.report.batch import byte_size
from ruyi_rl.stages.card_code import loading_parts
from ruyi_rl.stages.card_scores import ScoreTable
from ruyi_rl.stages.parity import Parity
from ruyi_rl.stages.provenance import Provenance

TAGS = ("familial-model", "early-exit", "ruyi_rl")
LIBRARIES = {"family": "ruyi_rl"}
"""Format -> library that loads it, where that is not transformers."""
KINDS = {
    "merged": "a stock {backbone}: transformers and vLLM load it without code of its own",
    "factored": "a {backbone} some of whose layers are stored and run as two thin factors",
    "family": "all exits of a familial model in ruyi_rl's own format",
    "ruyi": "all exits of a familial model under the keys and names of the published Ruyi checkpoints",
}


@dataclass(frozen=True)
class ExitSize:
    """One exit of the family."""

    name: str
    position: int
    layers: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Card:
    """All that a card tells."""

    address: str
    """What a user gives to load it: a hub id, or the folder's name."""
    exit: str | None
    """None: it holds all of them."""
    format: str
    backbone: str
    """`Qwen3`, say."""
    dtype: str
    parameters: int
    bytes: int
    exits: Sequence[ExitSize]
    provenance: Provenance
    parity: Parity
    scores: Sequence[ScoreTable] = ()
    chat: bool = True
    """Whether the tokenizer has a chat template."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Of the generation config; empty: greedy."""
    license: str | None = None
    code: Sequence[str] = ()
    """Files of others that the folder still needs."""


def render(card: Card) -> str:
    """The card as Markdown with YAML front matter."""
    held = "all exits" if card.exit is None else f"exit {card.exit}"
    size = next((exit for exit in card.exits if exit.name == card.exit), card.exits[-1])
    kind = KINDS[card.format].format(backbone=card.backbone)
    layers = "" if card.exit is None else f"{size.layers} layers, "
    parts = [
        front_matter(card),
        f"# {card.provenance.run}: {held}",
        f"This is {kind}. It has {layers}{card.parameters:,} parameters in {card.dtype}, {byte_size(card.bytes)}.",
        _about(card),
        "## How to load it",
        *loading_parts(card),
        _drawing(card),
        "## Evaluation",
        *_evaluation(card),
        "## The exits of the family",
        _exits(card),
        "## Where it comes from",
        *_provenance(card),
        "## How it was checked",
        _checked(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: Card) -> str:
    """The YAML block that the hub reads."""
    base = card.provenance.base
    stages = [record.name for record in card.provenance.stages]
    values: dict[str, Any] = {
        **({"license": card.license} if card.license else {}),
        "library_name": LIBRARIES.get(card.format, "transformers"),
        "pipeline_tag": "text-generation",
        **({"base_model": base.name, "base_model_relation": "finetune"} if base.on_hub else {}),
        "tags": [*TAGS, *(stage for stage in dict.fromkeys(stages) if stage in ("sft", "grpo"))],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of figures are aligned on the right."""
    figures = [all(str(row[number])[:1] in "0123456789–" for row in rows) for number in range(len(columns))]
    lines = [columns, ["---:" if each else "---" for each in figures], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _about(card: Card) -> str:
    names = ", ".join(f"`{exit.name}`" for exit in card.exits)
    if card.exit is None:
        return f"A familial model is one network with several exits, each a model of its own size: {names}."
    return (
        f"It is one exit of a familial model, one network with several exits that were trained together: {names}. "
        f"What the family computes at `{card.exit}` is what this model computes."
    )


def _drawing(card: Card) -> str:
    values = [
        f"{key} {'0 (no limit)' if (key, value) == ('top_k', 0) else f'{value:g}'}"
        for key, value in card.sampling.items()
    ]
    if not values:
        return ""
    return f"By default it draws with {', '.join(values)}: that and the end tokens are in `generation_config.json`."


def _evaluation(card: Card) -> list[str]:
    if not card.scores:
        return ["It was not evaluated."]
    parts = []
    for found in card.scores:
        rows = [[_bold(row[0], card.exit), *row[1:]] for row in found.rows]
        parts += [f"{found.title}.", table(found.columns, rows)]
    return parts


def _exits(card: Card) -> str:
    rows = [
        [_bold(exit.name, card.exit), exit.position, exit.layers, f"{exit.parameters:,}", byte_size(exit.bytes)]
        for exit in card.exits
    ]
    return table(["exit", "shared layers", "layers", "parameters", "bytes"], rows)


def _provenance(card: Card) -> list[str]:
    found, parts = card.provenance, []
    if found.base.on_hub:
        parts.append(f"Base model: [{found.base.name}](https://huggingface.co/{found.base.name}).")
    elif found.base.name:
        parts.append(f"Base model: a local folder, `{found.base.name}`.")
    elif found.stages and found.stages[0].name == "init":
        parts.append("Base model: none, the weights began as random ones.")
    if not found.stages:
        return [*parts, f"Run: `{found.run}`. Which stages made it is not recorded."]
    parts.append(f"Run `{found.run}`, trained with ruyi_rl by these stages in turn:")
    rows = [
        [
            record.name,
            record.data or "–",
            f"`{record.config_hash}`",
            str(record.seed),
            str(record.ranks),
            record.finished or "–",
        ]
        for record in found.stages
    ]
    parts.append(table(["stage", "data", "config", "seed", "ranks", "finished"], rows))
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in found.versions.items()) + ".")
    if not card.license:
        parts.append("No license is set here: name one before you publish it (`export.license`).")
    return parts


def _checked(card: Card) -> str:
    parity, subject = card.parity, "exit" if card.exit else "exits"
    text = (
        f"Loaded anew from this folder, its logits differ from those of the family's {subject} by at most "
        f"{parity.difference:.2g} (the largest logit is {parity.largest_logit:.3g}; {parity.allowed:.2g} is allowed)."
    )
    vllm = parity.vllm or {}
    if "difference" in vllm:
        text += (
            f" vLLM's log-probs differ from the family's by at most {vllm['difference']:.2g} "
            f"({vllm['allowed']:.2g} is allowed)."
        )
    return text


def _bold(name: str, exit: str | None) -> str:
    return f"**{name}**" if name == exit else name
