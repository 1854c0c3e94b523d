"""One rank of a run that test_scored_rewards.py starts.

Rewards that fail on one rank alone: on some completions, by a pool that cannot start, and with `on_error=stop`. Each
rank writes what it trained on and how it was ended.
"""

import json
from pathlib import Path

from zero_run import FixedRollout, grpo_rows

from ruyi_rl import ranks
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.failure import StageFailed
from ruyi_rl.family import Family
from ruyi_rl.rewards.failures import RewardFailures
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from tests.rewards.fake_pool import Kind, group_of
from tests.training.test_grpo_trainer import config


class HalfArriving(FixedRollout):
    def generate(self, requests, sampling, arrived=None):
        completions = super().generate(requests, sampling)
        half = range(len(requests) // 2)
        arrived(half, completions[: len(half)])
        return completions


def last_token(completion, row):
    return float(row["completion_ids"][-1] % 5)


def failing_on_rank_1(completion, row):
    if ranks.rank() == 1 and row["completion_ids"][-1] % 3 == 0:
        raise Kind("timeout")
    return last_token(completion, row)


def ended(folder: Path, function, break_on: int | None = None, **fields) -> dict:
    """Trains for two steps; what this rank knows at the end."""
    options, make, pools = group_of(reward=(function, fields))
    with RewardScorer(options, make) as scorer:
        trainer = FamilyGRPOTrainer(
            model=Family.from_pretrained(folder / "family"),
            reward_funcs=scorer,
            args=config(folder / "out", num_generations=4),
            train_dataset=grpo_rows(),
            processing_class=byte_tokenizer(),
            rollout=HalfArriving(),
            failures=RewardFailures(options, folder / "reward_failures.jsonl", lambda text: None),
        )
        if break_on == ranks.rank():
            pools["reward"].broken = "reward: cannot start: no sandbox on this machine"
        error = None
        try:
            trainer.train()
        except StageFailed as failed:
            error = str(failed).partition(". The samples")[0]
        log = trainer.state.log_history
        return {"step": trainer.state.global_step, "error": error, "reward": [row.get("reward") for row in log]}


def main(folder: Path) -> None:
    with ranks.connected():
        found = {
            "scored": ended(folder, last_token),
            "failed": ended(folder, failing_on_rank_1, max_failure_share=1.0),
            "broken": ended(folder, last_token, break_on=1),
            "stopped": ended(folder, failing_on_rank_1, on_error="stop"),
            "too many": ended(folder, failing_on_rank_1, max_failure_share=0.01),
        }
        (folder / f"rank{ranks.rank()}.json").write_text(json.dumps(found, default=float))
        ranks.barrier()
