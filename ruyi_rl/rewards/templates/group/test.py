"""my_reward on groups whose scores are known, called as a run calls it: in a worker process."""

from pathlib import Path

import pytest

from ruyi_rl.rewards.pool import PoolLimits, RewardPool

PLUGIN = Path(__file__).resolve().parents[1] / "rewards" / "my_reward.py"


@pytest.fixture(scope="module")
def reward():
    with RewardPool("my_reward", str(PLUGIN), limits=PoolLimits(scope="group")) as pool:
        yield lambda completions, prompts: pool.score(completions, {"prompts": prompts}, groups=prompts).rewards


def test_a_completion_is_paid_for_agreeing_with_its_own_group(reward):
    assert reward(["so 8", "8", "9", "none"], ["a"] * 4) == pytest.approx([1 / 3, 1 / 3, 0, 0])
    assert reward(["8", "9", "8", "9"], ["a", "b", "b", "a"]) == [0, 0, 0, 0]
    assert reward(["8", "9", "9.0", "8.0"], ["a", "b", "b", "a"]) == [1, 1, 1, 1]


def test_a_completion_alone_has_nothing_to_agree_with(reward):
    assert reward(["8", "8"], ["a", "b"]) == [None, None]


def test_chat_messages_score_as_their_text(reward):
    said = [[{"role": "assistant", "content": text}] for text in ("8", "8")]
    assert reward(said, ["a", "a"]) == [1, 1]


def test_whatever_a_model_writes_gets_a_number(reward):
    texts = ["", " \n", "\0", "\ud800", "{" * 10_000, "答案是", "9" * 10_000]
    assert reward(texts, ["a"] * len(texts)) == [0] * len(texts)
