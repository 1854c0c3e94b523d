"""`stage=pretrain` and `stage=expanded_pretrain`: joint (continued) pre-training on plain text, every token counted."""

from __future__ import annotations

from typing import Any

from ruyi_rl import ranks
from ruyi_rl.data.loading import load_data
from ruyi_rl.execution import StageContext
from ruyi_rl.report.curves import draw_curves
from ruyi_rl.stages.inputs import chosen_exits, load_tokenizer
from ruyi_rl.stages.joint import joint_training, training_summary
from ruyi_rl.training.callbacks import read_metrics

WHOLE_DOCUMENTS = {"packing": True, "packing_strategy": "wrapped"}
"""Long texts go on in the next sequence, so that no token is cut; the config may choose otherwise."""


def run(context: StageContext) -> dict[str, Any]:
    """Trains on the `text` column of the data."""
    config, stage = context.config, context.step.stage
    options = getattr(config, stage)
    exits = chosen_exits(context.input, options, stage)
    tokenizer = load_tokenizer(context.input)
    rows = load_data(config.data, config.seed, "pretrain").train
    if not context.kept("trained"):
        joint_training(
            context,
            rows,
            tokenizer,
            exits,
            options,
            start=context.input,
            save_to=context.folder,
            checkpoints=context.folder,
            defaults=WHOLE_DOCUMENTS,
        )
        context.keep("trained", True)
    if ranks.rank() == 0:
        rows = read_metrics(context.folder / "metrics.jsonl")
        draw_curves(rows, list(exits), ["loss"], context.folder / "curves.png", f"{config.name}: {stage}")
    return training_summary(context, exits)
