"""One rank of a run that test_vllm_ranks.py starts.

A family that ZeRO-3 shards takes an optimiser step between two syncs; the ranks' engines are first their own, and then
one engine is shared by both ranks. Each rank writes what its engines answered and what the family says of it.
"""

import json
from pathlib import Path

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from ruyi_rl import ranks
from ruyi_rl.family import Family
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.vllm import VllmRollout
from ruyi_rl.rollout.worker import Completion, Request, RolloutSpec, Sampling
from ruyi_rl.training.session import enter_deepspeed

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
SAMPLING = Sampling(10)


def requests_of(family: Family, rank: int) -> list[Request]:
    """Rank 1 has more prompts than rank 0, and others."""
    return [
        Request(exit, [65 + i, 66 + rank, 67], 1000 * rank + 10 * i) for i in range(2 + rank) for exit in family.exits
    ]


def family_log_probs(family: Family, everyones: list[tuple[Request, Completion]]) -> list[list[float]]:
    """Of every completion, on every rank, because a sharded family runs on all ranks or on none."""
    found = []
    for request, completion in everyones:
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = family(ids, exits=request.exit).logits[request.exit][0].log_softmax(-1)
        first = len(request.prompt_ids) - 1
        found.append([logits[first + i, token].item() for i, token in enumerate(completion.token_ids)])
    return found


def compared(rollout: VllmRollout, family: Family) -> list[dict]:
    mine = requests_of(family, ranks.rank())
    parts = ranks.gathered(list(zip(mine, rollout.generate(mine, SAMPLING), strict=True)))
    expected = family_log_probs(family, [pair for part in parts for pair in part])
    first = sum(map(len, parts[: ranks.rank()]))
    return [
        {"exit": request.exit, "tokens": completion.token_ids, "engine": completion.log_probs, "family": own}
        for (request, completion), own in zip(parts[ranks.rank()], expected[first:])
    ]


def main(folder: Path) -> None:
    with ranks.connected():
        enter_deepspeed(CONFIG)
        zero = HfDeepSpeedConfig(CONFIG)  # while it lives, from_pretrained shards
        family = Family.from_pretrained(folder / "family")
        assert all(parameter.ds_tensor.numel() < parameter.ds_numel for parameter in family.parameters()), zero
        engine, *_ = deepspeed.initialize(model=family, model_parameters=family.parameters(), config=CONFIG)
        spec = RolloutSpec(family.config, tuple(family.exits), (9,), 0, torch.float32, 32, folder / "engines")
        answers = {}
        for name, size in (("own", 1), ("shared", 2)):
            rollout = VllmRollout(RolloutOptions(tensor_parallel=size), spec)
            shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "cpushm_" in line]
            assert bool(shared) == (size > 1)
            assert all(line.endswith("(deleted)") for line in shared), "a kill would leave it behind"
            rollout.update_weights(family)
            answers[f"{name}, before"] = compared(rollout, family)
            out = engine(torch.arange(40, 60)[None])
            engine.backward(sum(logits.logsumexp(-1).mean() + logits.pow(2).mean() for logits in out.logits.values()))
            engine.step()
            rollout.update_weights(family)
            answers[f"{name}, after"] = compared(rollout, family)
            rollout.close()
        (folder / f"rank{ranks.rank()}.json").write_text(json.dumps(answers))
        ranks.barrier()
