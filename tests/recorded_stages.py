"""Stands in for the stage modules in tests of the pipeline."""

from types import SimpleNamespace

from ruyi_rl.run_folder import StageFolder
from tests.sealed_checkpoint import sealed_checkpoint

SIZE = {"k": 1, "layers": 2, "parameters": 3, "bytes": 4}
SIZES = {f"{key}_{when}": 3 for key in ("parameters", "bytes") for when in ("before", "after")}
EXITS = {"grpo": {"reward_first": 0.1, "reward_last": 0.2}, "compress": SIZES}
EXITS |= dict.fromkeys(("init", "expand", "eval"), SIZE)
TOP = {"expand": {"exit": "1.7B", "blocks": 3, "trained_share": 0.5}}
TOP |= {"compress": {"exit": "1.7B", "method": "budgeted", "ratio": 0.4, "recover_steps": 0}}
JOINT = {"loss_first": 2.0, "loss_last": 1.0, "accuracy_first": 0.1, "accuracy_last": 0.2}


class Stages:
    """Stands in for the stage modules: writes a family's files and remembers what ran, from what."""

    def __init__(self):
        self.ran = []
        self.act = {}

    def module(self, name):
        stage = name.rsplit(".", 1)[-1]

        def run(context):
            self.ran.append((stage, context.step.input and context.step.input.name))
            self.act.get(stage, lambda context: None)(context)
            if stage != "eval":
                (context.folder / "config.json").write_text("{}")
            return {"exits": {"1.7B": EXITS.get(stage, JOINT)}, **TOP.get(stage, {})}

        return SimpleNamespace(run=run)

    @property
    def names(self):
        return [stage for stage, _ in self.ran]


def manifest(config, stage):
    return StageFolder(f"{config.run_dir}/{stage}").manifest()


def checkpoint(context, step=7):
    sealed_checkpoint(context.folder, step)
