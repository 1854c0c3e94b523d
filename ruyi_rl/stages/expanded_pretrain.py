"""`stage=expanded_pretrain`: pretrain once more, after an exit was expanded, with a block and a folder of its own."""

from ruyi_rl.stages.pretrain import run

__all__ = ["run"]
