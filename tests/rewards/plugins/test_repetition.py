import random

import pytest
from trl.rewards import get_repetition_penalty_reward

from ruyi_rl.rewards.loading import load_function, start_hook

repetition = load_function("rewards/repetition.py")
start = start_hook("rewards/repetition.py")


@pytest.mark.parametrize("size, penalty", [(1, -1.0), (2, -0.5), (3, -1.0), (5, -2.0), (3, 0.0)])
def test_tokens_equal_trls(size, penalty):
    draw = random.Random(size)
    tokens = [[draw.randint(0, 3) for _ in range(draw.randint(0, 30))] for _ in range(200)]
    theirs = get_repetition_penalty_reward(size, penalty)(completion_ids=tokens)
    options = {"ngram_size": size, "max_penalty": penalty, "unit": "tokens"}
    assert repetition(completions=[""] * 200, completion_ids=tokens, **options) == theirs


def test_words_are_tokens_under_another_name():
    """A text of numbered words has the penalty of the numbers."""
    draw = random.Random(0)
    tokens = [[draw.randint(0, 3) for _ in range(draw.randint(0, 30))] for _ in range(100)]
    names = ["the", "Word", "don't", "बिल्ली"]
    words = [" ".join(names[token] for token in row) for row in tokens]
    chinese = ["".join("猫在垫上"[token] for token in row) for row in tokens]
    expected = repetition(completions=words, completion_ids=tokens, unit="tokens")
    assert repetition(completions=words) == repetition(completions=chinese) == expected
    assert repetition(completions=chinese, unit="characters") == expected


@pytest.mark.parametrize(
    "text, size, expected",
    [
        ("a b c a b c", 3, -0.25),  # abc bca cab abc
        ("A b, c. a B c!", 3, -0.25),
        ("no no no no", 1, -0.75),
        ("哈哈哈哈哈", 2, -0.75),
        ("a b", 3, 0),
        ("", 1, 0),
        ("a b c", 3, 0),
    ],
)
def test_by_hand(text, size, expected):
    chat = [{"role": "assistant", "content": text}]
    assert repetition(completions=[text, chat], ngram_size=size) == [expected, expected]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_penalty": 0.5}, "0 or less"),
        ({"max_penalty": float("nan")}, "0 or less"),
        ({"ngram_size": 0}, "from 1"),
        ({"ngram_size": 2.5}, "from 1"),
        ({"unit": "letters"}, "'letters'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)
    with pytest.raises(ValueError, match=message):
        repetition(completions=["a"], **options)


def test_tokens_that_were_not_passed():
    with pytest.raises(ValueError, match="completion_ids"):
        repetition(completions=["a"], unit="tokens")
