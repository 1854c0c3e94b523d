"""One rank of a run that test_server_ranks.py starts.

A family that ZeRO-3 shards is sent to fake servers; then a pool fails, and another is refused. Each rank writes what it
got and what it was told.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import deepspeed
import fake_server
from fakes import SAMPLING, requests_of, spec_of
from transformers.integrations import HfDeepSpeedConfig

from ruyi_rl import ranks
from ruyi_rl.family import Family
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.command import command_line
from ruyi_rl.rollout.vllm_server import VllmServerRollout
from ruyi_rl.rollout.worker import Request, RolloutFailed
from ruyi_rl.training.session import enter_deepspeed

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def main(folder: Path) -> None:
    def command(arguments) -> list[str]:
        return [sys.executable, fake_server.__file__, "--script", str(script), *command_line(arguments)[3:]]

    with ranks.connected():
        enter_deepspeed(CONFIG)
        zero = HfDeepSpeedConfig(CONFIG)  # while it lives, from_pretrained shards
        family = Family.from_pretrained(folder / "family")
        assert all(parameter.ds_tensor.numel() < parameter.ds_numel for parameter in family.parameters()), zero
        deepspeed.initialize(model=family, model_parameters=family.parameters(), config=CONFIG)
        rank = ranks.rank()
        spec = spec_of(family, folder)
        script = folder / "healthy.json"
        rollout = VllmServerRollout(RolloutOptions(workers={"small": 2}), spec, command=command)
        rollout.update_weights(family)
        # Rank 1 asks for fewer, and for none the second time.
        mine = [
            Request(request.exit, (90 + rank, *request.prompt_ids), request.seed)
            for request in requests_of(spec.exits, prompts=3 - rank)
        ]
        answers = {
            "requests": [asdict(request) for request in mine],
            "completions": [asdict(completion) for completion in rollout.generate(mine, SAMPLING)],
            "again": len(rollout.generate(mine if rank == 0 else [], SAMPLING)),
            "statistics": sorted(rollout.statistics()),
            "health": len(rollout.health()),
        }
        rollout.close()
        script = folder / "sick.json"
        rollout = VllmServerRollout(RolloutOptions(max_failures=0), spec, command=command, report=lambda line: None)
        rollout.update_weights(family)
        try:
            rollout.generate(mine, SAMPLING)
        except RolloutFailed as error:
            answers["failed"] = str(error)
        rollout.close()
        try:
            VllmServerRollout(RolloutOptions(addresses={"small": ["http://127.0.0.1:9"]}), spec, command=command)
        except Refusal as refused:
            answers["refused"] = refused.key
        (folder / f"rank{rank}.json").write_text(json.dumps(answers))
        ranks.barrier()
