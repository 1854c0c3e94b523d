"""my_reward on completions whose score is known, called as a run calls it: in a worker process."""

from pathlib import Path

import pytest

from ruyi_rl.rewards import load_reward

PLUGIN = Path(__file__).resolve().parents[1] / "rewards" / "my_reward.py"


@pytest.fixture(scope="module")
def reward():
    with load_reward(str(PLUGIN)) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("3+5=8, so the answer is 8", "8", 1.0),
        ("It costs $1,200.50.", "1200.5", 1.0),
        ("8 at first, then 9", "8", 0.0),
        ("I do not know", "8", 0.0),
        ("8", "eight", None),
    ],
)
def test_known_completions(reward, completion, answer, expected):
    assert reward(completions=[completion], answer=[answer]) == [expected]


def test_chat_messages_score_as_their_text(reward):
    said = [[{"role": "assistant", "content": text}] for text in ("8", "9")]
    assert reward(completions=said, answer=["8", "8"]) == [1.0, 0.0]


def test_whatever_a_model_writes_gets_a_number(reward):
    texts = ["", " \n", "\0", "\ud800", "{" * 10_000, "答案是", "9" * 10_000]
    assert reward(completions=texts, answer=["8"] * len(texts)) == [0.0] * len(texts)
