"""`stage=expanded_sft`: sft once more, after an exit was expanded, with a block and a folder of its own."""

from ruyi_rl.stages.sft import run

__all__ = ["run"]
