"""GRPO on vLLM's engines: they stay the trainer's model, step after step."""

import pytest
import torch

from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.transformers import TransformersRollout
from ruyi_rl.rollout.vllm_version import import_problem
from ruyi_rl.rollout.worker import RolloutSpec
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from tests.training.test_grpo_trainer import EXITS, PROMPTS, config, share_of_digits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def vllm():
    if problem := import_problem():
        pytest.skip(f"vLLM cannot be imported: {problem}")


@pytest.fixture
def train(make_family, tokenizer, tmp_path):
    """Train a family on a back end; returns its weights before and after, and the log."""

    def run(backend: str, **changes):
        family = make_family(head_dim=32)  # vLLM's CPU kernels have no smaller one
        before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
        ends = (tokenizer.eos_token_id,)
        if backend == "vllm":
            from ruyi_rl.rollout.vllm import VllmRollout

            spec = RolloutSpec(
                family.config, EXITS, ends, tokenizer.pad_token_id, torch.float32, 64, tmp_path / "rollout"
            )
            rollout = VllmRollout(RolloutOptions(backend="vllm", engine={"max_num_seqs": 16}), spec)
        else:
            rollout = TransformersRollout(family, tokenizer.pad_token_id, ends)
        trainer = FamilyGRPOTrainer(
            model=family,
            reward_funcs=share_of_digits,
            args=config(tmp_path / "out", max_completion_length=12, num_train_epochs=50, **changes),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            rollout=rollout,
        )
        try:
            trainer.train()
        finally:
            rollout.close()
        return before, family.state_dict(), [row for row in trainer.state.log_history if "step_time" in row]

    return run


def differences(rows, kind: str) -> list[float]:
    return [row[f"{name}/sampling/sampling_logp_difference/{kind}"] for row in rows for name in EXITS]


def test_engines_follow_the_trainer_and_replace_its_own_rollouts(train):
    before, ours, rows = train("vllm", max_steps=6, learning_rate=3e-3)
    moved = max((ours[name] - before[name]).abs().max().item() for name in before)
    assert moved > 1e-2  # an engine that had kept older weights would be found out
    assert max(differences(rows, "max")) <= 1e-4
    assert max(differences(rows, "mean")) <= 1e-5
    assert all(
        row[f"{name}/sampling/effective_sample_size"] == pytest.approx(1, abs=1e-3) for row in rows for name in EXITS
    )
    _, theirs, own_rows = train("transformers", max_steps=6, learning_rate=3e-3)
    assert [row["reward"] for row in rows] == [row["reward"] for row in own_rows]  # the same draws
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-4)


def test_nothing_moves_and_nothing_drifts_at_learning_rate_zero(train):
    before, after, rows = train("vllm", max_steps=20, learning_rate=0.0)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(rows) == 20
    assert max(differences(rows, "max")) <= 1e-4
    assert max(differences(rows, "mean")) <= 1e-5
