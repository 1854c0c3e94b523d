"""`stage=new_reward` and `stage=check_reward`: what can be known of them before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import check_data
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.drafts import check_kind
from ruyi_rl.validation.folders import require_folder
from ruyi_rl.validation.values import require


def check_reward_tool(config: RunConfig) -> None:
    """Refuse a tool for the author of a reward that cannot run.

    Raises:
        Refusal: the first thing that is wrong.
    """
    name = config.stage.name
    ranks_asked = max(config.num_processes, ranks.world_size())
    require("num_processes", ranks_asked, ranks_asked == 1, f"1: stage={name} runs in one process")
    if name == "new_reward":
        check_kind(config.new_reward.kind)
        return
    options = config.check_reward
    require("check_reward.samples", options.samples, options.samples >= 2, "2 or more")
    require("check_reward.shown", options.shown, options.shown >= 0, "0 or more")
    columns = sorted({column for names in check_reward(config.reward).values() for column in names})
    if options.completions is not None and not Path(options.completions).is_file():
        problem = f"no file {options.completions}"
        raise Refusal("check_reward.completions", problem, "JSON lines, each with a completion")
    # A file of completions may have all columns itself.
    check_data(config.data, "grpo", columns if options.completions is None else ())
    if options.output is not None:
        output = Path(options.output)
        require("check_reward.output", options.output, not output.is_dir(), "a file, not a folder")
        require_folder("check_reward.output", output.parent)
