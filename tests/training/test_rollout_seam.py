"""What the trainer makes of a back end: its completions, its log-probs, its statistics, and rollouts on disk."""

import pytest
import torch

from ruyi_rl.rollout.record import ReplayRollout, RolloutFile, read_rollouts
from ruyi_rl.rollout.worker import RolloutFailed, Statistics
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from tests.training.test_grpo_trainer import EXITS, PROMPTS, Parrot, config, share_of_digits


def test_another_back_end_fits_in(make_family, tokenizer, tmp_path):
    worker = Parrot()
    trainer = FamilyGRPOTrainer(
        model=make_family(),
        reward_funcs=share_of_digits,
        args=config(tmp_path),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout=worker,
    )
    trainer.train()
    assert [len(requests) for requests in worker.asked] == [24, 24]
    assert [request.exit for request in worker.asked[0]] == [name for _ in range(2) for name in EXITS for _ in range(4)]
    assert len({request.seed for requests in worker.asked for request in requests}) == 48
    assert worker.updates == 2  # before each step's rollouts
    logged = trainer.state.log_history[0]
    for name in EXITS:
        assert logged[f"{name}/completions/clipped_ratio"] == 0.5
        assert logged[f"{name}/rollout/tokens_per_second"] == 25
        assert logged[f"{name}/rollout/sync_seconds"] == 0.5
        assert logged[f"{name}/rollout/failures"] == 1
        assert f"{name}/sampling/effective_sample_size" not in logged
    assert logged["rollout/seconds"] > 0


def test_a_prompt_that_comes_again_is_drawn_anew_and_an_evaluation_is_not_counted(make_family, tokenizer, tmp_path):
    class Counting(Parrot):
        def __init__(self):
            super().__init__()
            self.counted = Statistics()
            self.counted.of("small").tokens += 10**6  # what an evaluation before the training has left

        def generate(self, requests, sampling):
            for request in requests:
                self.counted.of(request.exit).tokens += 2
                self.counted.of(request.exit).seconds += 1
            return super().generate(requests, sampling)

        def statistics(self):
            return self.counted.take()

    worker = Counting()
    trainer = FamilyGRPOTrainer(
        model=make_family(),
        reward_funcs=share_of_digits,
        args=config(tmp_path, max_steps=7),  # six steps are a pass over the prompts
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout=worker,
    )
    trainer.train()
    requests = [request for batch in worker.asked for request in batch]
    assert len({(request.exit, tuple(request.prompt_ids)) for request in requests}) < len(requests) / 4
    assert len({request.seed for request in requests}) == len(requests)
    assert trainer.state.log_history[0]["small/rollout/tokens_per_second"] == 2


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_an_engines_log_probs_weigh_the_loss(make_family, tokenizer, tmp_path, mode):
    """The ratio p_trainer / p_engine of each token or completion, cut as asked, and the metrics that show it."""
    engine = [-4.5, -6.0]
    clip = {"vllm_importance_sampling_clip_max": 1.5, "vllm_importance_sampling_clip_min": 0.3}
    trainer = FamilyGRPOTrainer(
        model=make_family(),
        reward_funcs=share_of_digits,
        args=config(tmp_path, vllm_importance_sampling_mode=mode, **clip),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout=Parrot(log_probs=engine),
    )
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    output = trainer._generate_and_score_completions(batch)

    difference = output["old_per_token_logps"] - torch.tensor(engine)
    expected = (difference.sum(1, keepdim=True) if mode.startswith("sequence") else difference).exp()
    outside = (expected < 0.3) | (expected > 1.5)
    assert outside.any() and not outside.all()
    expected = expected.clamp(0.3, 1.5) if mode.endswith("truncate") else expected.masked_fill(outside, 0.0)
    torch.testing.assert_close(output["importance_sampling_ratio"], expected)

    for exit, name in enumerate(EXITS):
        rows = difference[output["exit_ids"] == exit].double()
        logged = {key: value[-1] for key, value in trainer._metrics["train"].items()}
        assert logged[f"{name}/sampling/sampling_logp_difference/mean"] == pytest.approx(rows.abs().mean().item())
        assert logged[f"{name}/sampling/sampling_logp_difference/max"] == pytest.approx(rows.abs().max().item())
        weights = rows.sum(1).exp()
        effective = weights.sum() ** 2 / (weights**2).sum() / len(weights)
        assert logged[f"{name}/sampling/effective_sample_size"] == pytest.approx(effective.item())

    # The same batch, weighed by hand: TRL multiplies each token's loss by its ratio.
    chunk = trainer._split_by_exit({**output, "advantages": torch.randn(len(batch))}, 1)[0]
    trainer.current_gradient_accumulation_steps = 1
    weighed = trainer._compute_loss(trainer.model, dict(chunk)).item()
    trainer.use_vllm = False
    assert trainer._compute_loss(trainer.model, dict(chunk)).item() != pytest.approx(weighed, abs=1e-6)
    ones = {**chunk, "importance_sampling_ratio": torch.ones_like(chunk["importance_sampling_ratio"])}
    plain = trainer._compute_loss(trainer.model, dict(chunk)).item()
    trainer.use_vllm = True
    assert trainer._compute_loss(trainer.model, ones).item() == pytest.approx(plain, abs=1e-7)


def test_vespo_takes_no_sequence_weights(make_family, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="vllm_importance_sampling_mode must be token"):
        FamilyGRPOTrainer(
            model=make_family(),
            reward_funcs=share_of_digits,
            args=config(tmp_path, loss_type="vespo", vllm_importance_sampling_mode="sequence_mask"),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            rollout=Parrot(log_probs=[-1.0, -1.0]),
        )


def test_rollouts_that_are_recorded_train_the_same_when_replayed(make_family, tokenizer, tmp_path):
    def trainer_of(folder, **extra):
        args = config(tmp_path / folder, gradient_accumulation_steps=2, per_device_train_batch_size=12)
        return FamilyGRPOTrainer(
            model=make_family(),
            reward_funcs=share_of_digits,
            args=args,
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            **extra,
        )

    file = RolloutFile(tmp_path / "rollouts.jsonl")
    drawn = trainer_of("a", record=file.write)
    drawn.train()
    rows = read_rollouts(file.path)
    assert len(rows) == file.rows == 48 and {row["step"] for row in rows} == {0, 1}
    assert rows[0]["rewards"].keys() == {"share_of_digits"} and rows[0]["log_probs"] is None
    replayed = trainer_of("b", rollout=ReplayRollout(file.path))
    replayed.train()
    for ours, theirs in zip(drawn.model.parameters(), replayed.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(RolloutFailed, match="no further completion"):
        trainer_of("c", rollout=replayed.rollout).train()
