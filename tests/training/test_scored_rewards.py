"""The trainer with a `RewardScorer`: the same as with plain functions, but for failures; and while rollouts come."""

import json
import pickle
import random
import subprocess
import sys

import pytest
import torch
from transformers import TrainerState

from ruyi_rl.failure import StageFailed
from ruyi_rl.rewards.failures import RewardFailures, failure_counts, read_rows
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import RolloutFailed
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.scored_batch import picklable_state
from tests.forked_ranks import run_ranks
from tests.rewards.fake_pool import Kind, group_of
from tests.training.test_grpo_trainer import EXITS, PROMPTS, Parrot, config, share_of_digits


def digits(completion, row):
    return share_of_digits([completion])[0]


def seldom(completion, row):
    """Fails on some completions, by what they say."""
    text = completion[0]["content"]
    if sum(map(ord, text)) % 5 == 0:
        raise Kind("timeout" if len(text) % 2 else "nan")
    return digits(completion, row)


@pytest.fixture
def trainer_of(make_family, tokenizer, tmp_path):
    opened = []

    def make(scorer_of=None, rollout=None, folder="run", **changes):
        reward, failures = share_of_digits, None
        if scorer_of is not None:
            options, make_pool, _ = scorer_of
            reward = RewardScorer(options, make_pool)
            opened.append(reward)
            failures = RewardFailures(options, tmp_path / folder / "reward_failures.jsonl", lambda text: None)
        trainer = FamilyGRPOTrainer(
            model=make_family(),
            reward_funcs=reward,
            args=config(tmp_path / folder, **changes),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            rollout=rollout,
            failures=failures,
        )
        trainer.failures_file = None if failures is None else failures.path
        return trainer

    yield make
    for scorer in opened:
        scorer.close()


def logged(trainer):
    """What was logged, but for times."""
    return [
        {
            key: value
            for key, value in row.items()
            if "seconds" not in key and "per_second" not in key and "time" not in key
        }
        for row in trainer.state.log_history[:-1]
    ]


def without(rows, words):
    return [{key: value for key, value in row.items() if not any(word in key for word in words)} for row in rows]


def test_a_scorer_trains_as_the_plain_function_does(trainer_of):
    plain = trainer_of(folder="plain")
    plain.train()
    scored = trainer_of(group_of(share_of_digits=(digits, {}), delay=0.002))
    scored.train()
    for ours, theirs in zip(scored.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert without(logged(scored), ["share_of_digits/rows"]) == logged(plain)
    assert scored.state.log_history[0]["rewards/overlapped_seconds"] > 0
    assert scored.state.log_history[0]["rewards/seconds"] >= 0


def prepared(trainer):
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    return batch, trainer._generate_and_score_completions(batch)


def test_functions_get_what_trl_gives_and_their_logs_arrive(trainer_of):
    options, make, pools = group_of(digits=(digits, {}))
    trainer = trainer_of((options, make, pools), rollout=Silent())
    batch, _ = prepared(trainer)
    (call,) = pools["digits"].calls
    completions, columns, groups = call
    assert columns["prompts"] == [row["prompt"] for row in batch]
    assert columns["answer"] == [row["answer"] for row in batch] and columns["exit"] == [row["exit"] for row in batch]
    assert [len(ids) for ids in columns["completion_ids"]] == [2] * 24
    assert completions[0][0]["role"] == "assistant"
    assert groups == [row // 4 for row in range(24)]
    assert columns.keys() == {"prompts", "answer", "exit", "completion_ids", "trainer_state"}
    assert columns["trainer_state"].max_steps == trainer.state.max_steps
    assert list(trainer._logs["extra"]["digits/seen"]) == [f"digits: {completion}" for completion in completions]
    assert trainer._metrics["train"]["digits/rows"] == [24.0]


def test_the_state_that_functions_get_needs_no_torch():
    state = TrainerState(global_step=5, max_steps=9, log_history=[{"loss": 1.0}] * 1000)
    code = (
        "import pickle, sys\n"
        f"state = pickle.loads({pickle.dumps(picklable_state(state))!r})\n"
        "print(state.global_step, state.max_steps, state.log_history, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "5 9 [] False\n"
    assert state.log_history


class Dripping(Parrot):
    """Gives its completions in an order of its own, in pieces; what it does not give before comes at the end."""

    def __init__(self, seed, share=1.0):
        super().__init__()
        self.draw, self.share = random.Random(seed), share

    def generate(self, requests, sampling, arrived=None):
        completions = super().generate(requests, sampling)
        order = self.draw.sample(range(len(requests)), round(self.share * len(requests)))
        while order and arrived is not None:
            size = self.draw.randint(1, 7)
            piece, order = order[:size], order[size:]
            arrived(piece, [completions[place] for place in piece])
        return completions


class Silent(Parrot):
    def generate(self, requests, sampling, arrived=None):
        return super().generate(requests, sampling)


FUNCTIONS = {
    "seldom": (seldom, {"max_failure_share": 1.0}),
    "grouped": (digits, {"scope": "group", "weight": 0.5, "gate": "watch", "gate_on": "failed"}),
    "whole": (digits, {"scope": "batch", "weight": 0.25}),
    "watch": (lambda completion, row: float(len(row["answer"]) > 1), {"weight": 0.0}),
}


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_scored_as_they_come_or_afterwards_is_the_same(trainer_of, share):
    found = []
    for folder, rollout in (("after", Silent()), ("dripping", Dripping(1, share)), ("other", Dripping(2, share))):
        options, make, pools = group_of(delay=0.003, **FUNCTIONS)
        trainer = trainer_of((options, make, pools), rollout=rollout, folder=folder)
        trainer.model.train()
        _, output = prepared(trainer)
        rows = [row for row in read_rows(trainer.failures_file) if "kind" in row]
        found.append((trainer._rewards, trainer._composed.rewards, output["advantages"], rows))
        assert len(pools["seldom"].asked) == 24 and len(pools["whole"].calls) == 1
        assert len(pools["seldom"].calls) == 1 if folder == "after" else len(pools["seldom"].calls) > 1
        for _, _, groups in pools["grouped"].calls:
            assert all(groups.count(group) == 4 for group in groups), "a group is never cut"
    for other in found[1:]:
        for ours, theirs in zip(found[0][:3], other[:3]):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert other[3] == found[0][3]
    assert found[0][1].isnan().any() and not found[0][1].isnan().all()


def test_a_back_end_that_gives_completions_for_other_rows_ends_the_run(trainer_of):
    class Confused(Parrot):
        def generate(self, requests, sampling, arrived=None):
            completions = super().generate(requests, sampling)
            arrived(list(range(len(requests))), completions[::-1])
            return completions

    trainer = trainer_of(group_of(digits=(digits, {})), rollout=Confused())
    trainer.model.train()
    with pytest.raises(StageFailed, match="a completion that is not its own"):
        prepared(trainer)


def test_failures_are_left_out_counted_and_kept(trainer_of):
    options, make, _ = group_of(seldom=(seldom, {"max_failure_share": 1.0}), always=(digits, {"weight": 0.1}))
    trainer = trainer_of((options, make, None), max_steps=3)
    trainer.train()
    rows = read_rows(trainer.failures_file)
    counts = failure_counts(trainer.failures_file)["seldom"]
    log = trainer.state.log_history[:-1]
    for kind in ("nan", "timeout"):
        of_run = sum(row.get(f"rewards/seldom/failures/{kind}", 0) for row in log)
        by_exit = sum(row.get(f"{name}/rewards/seldom/failures/{kind}", 0) for row in log for name in EXITS)
        assert counts[kind] == of_run == by_exit > 0
    unscored = sum(row[f"{name}/unscored"] * 8 for row in log for name in EXITS)
    assert sum(counts.values()) == round(unscored)
    kept = [row for row in rows if "kind" in row]
    assert {row["step"] for row in rows} <= {0, 1, 2} and {row["mode"] for row in rows} == {"train"}
    assert kept[0]["completion"][0]["role"] == "assistant" and kept[0]["exit"] in EXITS


def test_a_failed_completion_gets_no_advantage_though_another_function_scored_it(trainer_of):
    options, make, _ = group_of(seldom=(seldom, {"max_failure_share": 1.0}), always=(digits, {"weight": 0.1}))
    trainer = trainer_of((options, make, None))
    _, output = prepared(trainer)
    left_out = trainer._composed.rewards.isnan()
    assert left_out.any() and (output["advantages"][left_out] == 0).all()
    assert not trainer._rewards[left_out, 1].isnan().any()
    kept = trainer._composed.rewards[~left_out]
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(kept.mean().item())
    assert trainer._metrics["train"]["reward_std"][-1] == pytest.approx(kept.std().item())


def test_gates_and_clips_reach_the_metrics(trainer_of):
    options, make, pools = group_of(
        gate=(digits, {"weight": 0.0}),
        behind=(lambda completion, row: 3.0, {"gate": "gate", "clip": [0.0, 1.0]}),
        pass_at=0.5,
        clip=[0.0, 0.8],
    )
    trainer = trainer_of((options, make, pools))
    prepared(trainer)
    passed = trainer._rewards[:, 0] >= 0.5
    assert passed.any() and not passed.all()
    assert trainer._rewards[:, 1].tolist() == passed.float().tolist()
    assert trainer._composed.rewards.tolist() == pytest.approx([0.8 if value else 0.0 for value in passed.tolist()])
    metrics = trainer._metrics["train"]
    assert metrics["rewards/behind/asked"] == [pytest.approx(passed.float().mean().item())]
    assert metrics["reward"][-1] == pytest.approx(0.8 * passed.float().mean().item())


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_the_advantages_of_two_functions_are_those_of_plain_ones(make_family, tokenizer, tmp_path, aggregation):
    def length(completions, **kwargs):
        return [float(len(message[0]["content"])) for message in completions]

    options, make, _ = group_of(
        digits=(digits, {"weight": 1.0}), length=(lambda completion, row: length([completion])[0], {"weight": 0.3})
    )
    with RewardScorer(options, make) as scorer:
        advantages = []
        for folder, reward in (("a", [share_of_digits, length]), ("b", scorer)):
            args = config(tmp_path / folder, reward_weights=[1.0, 0.3], multi_objective_aggregation=aggregation)
            trainer = FamilyGRPOTrainer(
                model=make_family(), reward_funcs=reward, args=args, train_dataset=PROMPTS, processing_class=tokenizer
            )
            advantages.append(prepared(trainer)[1]["advantages"])
    assert advantages[0].any()
    torch.testing.assert_close(advantages[0], advantages[1], rtol=0, atol=0)


def test_a_run_that_must_stop_stops_before_it_learns(trainer_of):
    options, make, _ = group_of(seldom=(seldom, {"on_error": "stop"}))
    trainer = trainer_of((options, make, None))
    with pytest.raises(StageFailed, match=r"plugin\.py:7: at .*on_error=stop"):
        trainer.train()
    assert trainer.state.global_step == 0
    options, make, pools = group_of(digits=(digits, {}))
    trainer = trainer_of((options, make, pools))
    pools["digits"].broken = "digits: cannot start: gone"
    with pytest.raises(StageFailed, match="no rewards: RewardError: digits: cannot start: gone"):
        trainer.train()


def test_a_failure_in_generation_cancels_the_scoring(trainer_of):
    class Dying(Dripping):
        def generate(self, requests, sampling, arrived=None):
            super().generate(requests, sampling, arrived)
            raise RolloutFailed("no worker is left")

    options, make, pools = group_of(a=(digits, {}), delay=0.05)
    trainer = trainer_of((options, make, pools), rollout=Dying(0))
    with pytest.raises(RolloutFailed):
        trainer.train()
    assert trainer._batch._scoring._cancelled


def test_rewards_of_a_record_are_the_functions_and_their_sum(trainer_of):
    options, make, _ = group_of(seldom=(seldom, {"max_failure_share": 1.0}), always=(digits, {"weight": 0.5}))
    trainer = trainer_of((options, make, None))
    rows = []
    trainer._record = rows.extend
    prepared(trainer)
    for row in rows:
        one, other = row["rewards"]["seldom"], row["rewards"]["always"]
        assert row["reward"] == (None if one is None else pytest.approx(one + 0.5 * other))
    assert {row["reward"] is None for row in rows} == {True, False}


@pytest.mark.slow
def test_ranks_end_together_where_one_of_them_fails(make_family, tmp_path):
    make_family().save_pretrained(tmp_path / "family")
    run_ranks("scored_ranks:main", tmp_path, log=tmp_path / "log")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert {name: (found["step"], found["error"]) for name, found in first.items()} == {
        name: (found["step"], found["error"]) for name, found in second.items()
    }
    assert first["scored"]["step"] == first["failed"]["step"] == 2
    assert first["failed"]["reward"] != first["scored"]["reward"]
    assert first["broken"]["error"] == "no rewards: RewardError: reward: cannot start: no sandbox on this machine"
    assert "on_error=stop" in first["stopped"]["error"] and first["stopped"]["step"] == 0
    assert "timeout), more than" in first["too many"]["error"] and first["too many"]["step"] == 1
