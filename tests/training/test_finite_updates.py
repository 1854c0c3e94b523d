"""What a skipped update leaves behind; that it leaves weights and moments alone is in test_finite_updates_ranks.py."""

import json

import pytest
import torch
from finite_run import Case, build, fail_at
from safetensors.torch import load_file

from ruyi_rl.failure import StageFailed
from ruyi_rl.training.callbacks import RunStateOf
from ruyi_rl.training.finite_updates import skipped_updates
from ruyi_rl.training.run_state import RunState, batches_of
from ruyi_rl.training.skipped_batches import KEPT, SkippedUpdate, write_skipped


@pytest.fixture
def folder(make_family, tmp_path):
    make_family().save_pretrained(tmp_path / "family")
    return tmp_path


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in (folder / "out").glob("checkpoint-*"))


def saving(folder, every: int = 1, **changes):
    trainer = build(
        Case("sft", "none"), folder, None, save_strategy="steps", save_steps=every, save_total_limit=2, **changes
    )
    trainer.announced = []
    trainer.announce = trainer.announced.append
    return trainer


def test_after_too_many_the_run_stops_and_the_last_good_checkpoints_are_there(folder):
    trainer = saving(folder, max_steps=8)
    trainer.max_skipped_updates = 2
    fail_at(trainer, "loss", range(2, 8), rank=0)
    before = {}
    trainer.add_callback(RunStateOf(trainer, None))
    with pytest.raises(StageFailed) as failure:
        trainer.train()
    message = str(failure.value)
    assert "the updates of steps 3, 4, 5 were not finite, and max_skipped_updates=2" in message
    assert "the loss is not finite at exit medium (rank 0)" in message and "Nothing of them has reached" in message
    assert "learning_rate" in message and "max_grad_norm (it is 0.5)" in message and str(folder / "out") in message
    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2"]
    assert (
        len(trainer.announced) == 2 and "step 4: the update was skipped (2 in a row, 2 in all)" in trainer.announced[1]
    )
    before = load_file(folder / "out" / "checkpoint-2" / "model.safetensors")
    now = trainer.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


def test_zero_allowed_means_the_first_one_stops_the_run(folder):
    trainer = saving(folder)
    trainer.max_skipped_updates = 0
    fail_at(trainer, "gradient", range(1, 2), rank=0)
    with pytest.raises(StageFailed, match=r"the update of step 2 was not finite, .*=0.* not the gradient of "):
        trainer.train()


def test_a_due_checkpoint_waits_for_a_finite_update_and_the_count_is_in_it(folder):
    trainer = saving(folder, every=2, max_steps=5)
    fail_at(trainer, "loss", range(1, 3), rank=0)
    trainer.add_callback(RunStateOf(trainer, None))
    trainer.train()
    assert checkpoints(folder) == ["checkpoint-4", "checkpoint-5"]
    resumed = saving(folder, max_steps=6)
    checkpoint = folder / "out" / "checkpoint-4"
    resumed.add_callback(RunStateOf(resumed, checkpoint))
    fail_at(resumed, "loss", range(4, 5), rank=0)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.skipped_updates == {"count": 3, "steps": []}


def scaled_trainer(folder, scale: float):
    trainer = build(Case("sft", "none"), folder, None)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    # accelerate does so where it has set the scaler up itself, which it does for GPUs alone.
    trainer.accelerator.unscale_gradients = lambda optimizer=None: trainer.accelerator.scaler.unscale_(
        trainer.optimizer.optimizer
    )
    trainer.announce = lambda line: None
    return trainer


def test_what_overflows_only_for_the_loss_scale_is_the_scalers(folder):
    """It skips and halves its scale by itself; a scale of 1 leaves it nothing to mend."""
    trainer = scaled_trainer(folder, 2.0**14)
    fail_at(trainer, "gradient", range(1, 2), rank=0)
    trainer.train()
    assert trainer.skipped_updates["count"] == 0 and trainer.accelerator.scaler.get_scale() == 2.0**13
    trainer = scaled_trainer(folder, 1.0)
    fail_at(trainer, "gradient", range(1, 2), rank=0)
    trainer.train()
    assert trainer.skipped_updates["count"] == 1


def test_under_a_scaler_a_loss_that_is_not_finite_is_skipped_and_the_schedule_goes_on(folder):
    trainer = scaled_trainer(folder, 2.0**14)
    fail_at(trainer, "value", range(1, 2), rank=0)
    trainer.train()
    assert trainer.skipped_updates["count"] == 1
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])


def test_the_kept_batch_can_be_read_and_loaded_and_only_the_newest_stay(folder, tokenizer):
    trainer = saving(folder)
    fail_at(trainer, "loss", range(1, 2), rank=0)
    seen, compute = [], trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **kwargs: seen.append(inputs) or compute(model, inputs, **kwargs)
    trainer.train()
    kept = folder / "out" / "skipped"
    path = kept / "step-2-rank-0.json"
    found = json.loads(path.read_text())
    assert found["reason"] == "the loss is not finite at exit medium (rank 0)"
    state = RunState({"batch": [{}, {}]}, load_file(path.with_suffix(".safetensors")))
    batches = batches_of(state, "batch", torch.device("cpu"))
    for batch, inputs, told in zip(batches, seen[2:4], found["micro_batches"], strict=True):
        assert batch.keys() == inputs.keys() and all(torch.equal(batch[name], inputs[name]) for name in batch)
        texts = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        assert [row["text"].replace(tokenizer.eos_token, "") for row in told["rows"]] == texts
    for step in range(10, 10 + KEPT):
        write_skipped(kept, SkippedUpdate(step, 1, 0.1, {}, []), [], 0, tokenizer)
    write_skipped(kept, SkippedUpdate(3, 1, 0.1, {}, []), [], 1, tokenizer)
    assert len(list(kept.glob("*-rank-0.json"))) == KEPT == len(list(kept.glob("*-rank-0.safetensors")))
    assert not path.exists() and (kept / "step-3-rank-1.json").exists()


def test_the_summary_counts_over_phases():
    rows = [{"phase": 1, "skipped_updates": 0}, {"phase": 1, "skipped_updates": 2}, {"phase": 2, "skipped_updates": 1}]
    assert skipped_updates(rows) == 3 and skipped_updates([{"phase": 1}]) == skipped_updates([]) == 0
