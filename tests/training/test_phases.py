"""The clock of a training's phases, and what the trainers put into which."""

import pytest
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, SFTConfig

from ruyi_rl.training import family_trainer
from ruyi_rl.training.callbacks import MetricsFile, read_metrics
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.phases import PhaseClock, in_phase, phase_metrics, phase_summary
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

COMMON = {
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
}


class Time:
    """A clock that only goes on where a test says so."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def passes(self, monkeypatch, owner, method, seconds):
        """Each call of `owner.method` takes `seconds` more."""
        original = getattr(owner, method)

        def slow(*args, **kwargs):
            self.seconds += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, slow)


@pytest.fixture
def now():
    return Time()


@pytest.fixture
def clock(now):
    return PhaseClock(now)


def test_every_border_tells_the_phase_that_begins():
    clock, told = PhaseClock(), []
    clock.listener = told.append
    with pytest.raises(KeyError), clock("rollout"):
        with clock("sync"):
            clock.turn_to("update")
        raise KeyError
    clock.turn_to("other")
    assert told == ["rollout", "sync", "sync", "rollout", "update", "other"]


def test_what_is_in_no_phase_is_other_until_the_clock_is_turned(clock, now):
    now.seconds += 1
    with clock("rollout"):
        now.seconds += 2
    clock.turn_to("update")
    now.seconds += 4
    with clock("rollout"):
        now.seconds += 8
    clock.turn_to("other")
    now.seconds += 16
    assert clock.take() == {"other": 17, "rollout": 10, "update": 4}


def test_an_inner_phase_pauses_the_outer_one(clock, now):
    with clock("sync"):
        now.seconds += 1
        with clock("rollout"):
            now.seconds += 2
            with clock("sync"):
                now.seconds += 4
            now.seconds += 8
        now.seconds += 16
    assert clock.take() == {"other": 0, "sync": 21, "rollout": 10}


def test_a_take_within_a_phase_splits_it_and_the_takes_sum_to_the_wall_time(clock, now):
    with clock("update"):
        now.seconds += 1
        first = clock.take()
        now.seconds += 2
        with clock("save"):
            now.seconds += 4
    now.seconds += 8
    second = clock.take()
    assert first == {"other": 0, "update": 1} and second == {"other": 8, "update": 2, "save": 4}
    assert sum(first.values()) + sum(second.values()) == now.seconds - 100
    assert clock.take() == {"other": 0, "update": 0, "save": 0}


def test_a_failure_in_a_phase_ends_it_and_waits_for_no_queue(now):
    settled = []
    clock = PhaseClock(now, lambda: settled.append(now.seconds))
    with pytest.raises(RuntimeError), clock("reward"):
        now.seconds += 3
        raise RuntimeError
    now.seconds += 1
    assert settled == [100]
    assert clock.take() == {"other": 1, "reward": 3}


def test_a_phase_waits_for_what_it_has_queued(now):
    queue = []

    def settle():
        now.seconds += sum(queue)
        queue.clear()

    clock = PhaseClock(now, settle)
    with clock("update"):
        queue.append(5)
    with clock("sync"):
        now.seconds += 1
    assert clock.take() == {"other": 0, "update": 5, "sync": 1}


def test_a_phase_that_does_not_exist_is_refused(clock):
    with pytest.raises(ValueError, match="no phase 'rolout'; there are rollout, reward"), clock("rolout"):
        pass
    with pytest.raises(ValueError, match="rolout"):
        clock.turn_to("rolout")
    with pytest.raises(ValueError, match="rolout"):
        in_phase("rolout")


def test_the_summary_sums_rows_and_its_shares_are_of_the_whole():
    rows = [
        {"step": 1, **phase_metrics({"update": 3.0, "other": 0.0}), "step_time": 50.0},
        {"step": 2, **phase_metrics({"update": 5.0, "save": 2.0, "other": 0.0})},
        {"step": 3, "time/rollout": None},
    ]
    assert phase_summary(rows) == {
        "update": {"seconds": 8.0, "share": 0.8},
        "save": {"seconds": 2.0, "share": 0.2},
    }
    assert phase_summary([]) == phase_summary([{"step": 1, "loss": 1.0}]) == {}


def test_what_comes_after_the_last_log_is_added_to_its_row(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.add_to_last({"time/save": 1.0})
    assert not file.path.exists()
    file.path.write_text('{"phase": 1, "step": 1, "time/save": 1.0}\n{"phase": 1, "step": 2, "time/save": 0.5}\n')
    file.add_to_last({"time/save": 4.0, "time/other": 2.0})
    assert read_metrics(file.path) == [
        {"phase": 1, "step": 1, "time/save": 1.0},
        {"phase": 1, "step": 2, "time/save": 4.5, "time/other": 2.0},
    ]


@pytest.fixture
def timed(now, monkeypatch):
    """Lets time pass in a trainer at known places only; returns the logged phases of each step."""
    monkeypatch.setattr(family_trainer, "PhaseClock", lambda settle: PhaseClock(now, settle))

    def run(trainer):
        now.passes(monkeypatch, trainer, "get_batch_samples", 2)
        now.passes(monkeypatch, trainer, "compute_loss", 7)
        now.passes(monkeypatch, trainer.accelerator, "backward", 10)
        now.passes(monkeypatch, trainer, "_clip_grad_norm", 20)
        now.passes(monkeypatch, trainer, "save_model", 5)
        now.passes(monkeypatch, Trainer, "create_scheduler", 1000)  # before the first step: nobody's
        trainer.create_optimizer()
        now.passes(monkeypatch, trainer.optimizer, "step", 40)
        before = now.seconds
        trainer.train()
        rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
        logged = [
            {key.removeprefix("time/"): value for key, value in row.items() if key.startswith("time/") and value}
            for row in rows
        ]
        left = trainer.phases.take()
        assert sum(sum(row.values()) for row in logged) + sum(left.values()) == now.seconds - before - 1000
        return logged, {name: value for name, value in left.items() if value}

    return run


def test_sft_logs_the_update_with_its_optimiser_step_and_the_checkpoint_before(timed, make_family, tokenizer, tmp_path):
    trainer = FamilySFTTrainer(
        model=make_family(exits={"small": 0, "large": 1}, layers=2),
        args=SFTConfig(str(tmp_path), max_steps=2, gradient_accumulation_steps=2, save_steps=1, **COMMON),
        train_dataset=Dataset.from_list([{"text": "one and one is two"}] * 16),
        processing_class=tokenizer,
    )
    update = 2 * (7 + 10) + 20 + 40
    logged, left = timed(trainer)
    assert logged == [{"other": 2, "update": update}, {"other": 2, "update": update, "save": 5}]
    assert left == {"save": 5}


def test_grpo_tells_generation_rewards_passes_and_weights_apart(
    timed, now, make_family, tokenizer, tmp_path, monkeypatch
):
    def judge(completions, **kwargs):
        now.seconds += 300
        return [float(len(text)) for text in completions]

    family = make_family(exits={"small": 0, "large": 1}, layers=2)
    trainer = FamilyGRPOTrainer(
        model=family,
        reward_funcs=judge,
        args=GRPOConfig(
            str(tmp_path),
            max_steps=2,
            num_generations=2,
            max_completion_length=4,
            num_iterations=2,
            beta=0.1,
            save_strategy="no",
            **COMMON,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n}="} for n in range(4)]),
        processing_class=tokenizer,
    )
    now.passes(monkeypatch, trainer.rollout, "update_weights", 500)
    now.passes(monkeypatch, trainer.rollout, "generate", 600)
    now.passes(monkeypatch, trainer.ref_model, "forward", 700)
    now.passes(monkeypatch, trainer, "_tokenize_prompts", 90)
    now.passes(monkeypatch, trainer.model, "forward", 800)
    logged, left = timed(trainer)
    update = 800 + 7 + 10 + 20 + 40
    decoding = logged[0].pop("rollout") - 600
    assert decoding > 0 and decoding % 800 == 0
    generated = {"reward": 300, "old_log_probs": 800, "reference": 700, "sync": 500, "other": 90 + 2}
    assert logged == [{**generated, "update": update}, {"update": update, "other": 2}]
    assert left == {}
