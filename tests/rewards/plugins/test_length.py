import itertools
import math
import random

import pytest
from trl.rewards import get_cosine_scaled_reward, get_soft_overlong_punishment

from ruyi_rl.rewards.loading import load_function, start_hook

length = load_function("rewards/length.py")
start = start_hook("rewards/length.py")


def ids(*sizes):
    return {"completions": ["x"] * len(sizes), "completion_ids": [[7] * size for size in sizes]}


@pytest.mark.parametrize("limit, cache", [(100, 20), (100, 0), (100, 100), (1, 0), (40, 7)])
def test_dapo_equals_trls_at_every_length(limit, cache):
    sizes = range(limit + 5)
    theirs = get_soft_overlong_punishment(limit, cache)(completion_ids=ids(*sizes)["completion_ids"])
    assert length(**ids(*sizes), limit=limit, cache=cache) == theirs


def test_dapo_cache_as_a_share_of_the_limit():
    assert length(**ids(80, 90, 100, 101), limit=100, cache=0.2) == [0, -0.5, -1, -1]


@pytest.mark.parametrize("values", [(-1, -0.5, 0.5, 1), (-10, 0, 1, 2), (0, 0, 1, 1)])
def test_cosine_equals_trls_for_right_and_wrong(values):
    names = ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct")
    options = dict(zip(names, values, strict=True))
    sizes = [0, 1, 30, 50, 99, 100, 101, 500]
    columns = ids(*sizes, *sizes)
    columns["completions"] = [r"\boxed{3}"] * len(sizes) + [r"\boxed{4}"] * len(sizes)
    chats = [[{"role": "assistant", "content": text}] for text in columns["completions"]]
    gold = ["3"] * 2 * len(sizes)
    theirs = get_cosine_scaled_reward(100, **options)(chats, gold, columns["completion_ids"])
    assert length(**columns, mode="cosine", limit=100, answer=gold, **options) == pytest.approx(theirs)


def test_cosine_at_the_limit_gets_the_papers_own_penalty():
    rewards = length(**ids(99, 100, 200), mode="cosine", limit=100, correct=True, exceed=-10)
    assert rewards[0] == pytest.approx(0.5, abs=1e-3)
    assert rewards[1:] == [-10, -10]


def test_cosine_without_a_usable_answer_abstains():
    assert length(**ids(1, 1), mode="cosine", limit=10, answer=[None, "3"])[0] is None
    assert length(**ids(1, 1), mode="cosine", limit=10, correct=[None, True])[0] is None


def test_kimi_by_hand():
    # Equation of the paper: 0.5 - (L - 10) / 40 for lengths 10, 20, 50.
    options = {"mode": "kimi", "prompts": ["p"] * 3}
    assert length(**ids(10, 20, 50), **options, correct=True) == [0.5, 0.25, -0.5]
    assert length(**ids(10, 20, 50), **options, correct=False) == [0, 0, -0.5]
    assert length(**ids(10, 20, 50), **options, correct=[True, None, False]) == [0.5, None, -0.5]


def test_kimi_of_equal_lengths_is_nothing():
    for correct in (True, False):
        assert length(**ids(5, 5), mode="kimi", prompts=["p"] * 2, correct=correct) == [0, 0]
    assert length(**ids(5), mode="kimi", prompts=["p"], correct=True) == [0]


def test_kimi_compares_inside_a_prompt_and_exit_only():
    """A batch of several groups, shuffled, gives what each group gives alone."""
    chat = [{"role": "user", "content": "p"}]
    groups = list(itertools.product(["p", "q", chat, [*chat, chat[0]]], ["1B", "8B"]))
    draw = random.Random(3)
    rows = [(prompt, name, draw.randint(1, 90), draw.random() < 0.5) for prompt, name in groups for _ in range(4)]
    draw.shuffle(rows)

    def score(rows):
        prompts, exits, sizes, correct = map(list, zip(*rows, strict=True))
        return length(**ids(*sizes), mode="kimi", prompts=prompts, exit=exits, correct=correct)

    together = dict(zip(map(id, rows), score(rows), strict=True))
    for prompt, name in groups:
        members = [row for row in rows if row[:2] == (prompt, name)]
        alone = score(members)
        assert [together[id(row)] for row in members] == alone
        shortest, longest = min(members, key=lambda row: row[2]), max(members, key=lambda row: row[2])
        if shortest[2] < longest[2]:
            assert alone[members.index(shortest)] == (0.5 if shortest[3] else 0)
            assert alone[members.index(longest)] == -0.5


def test_kimi_judges_by_the_answer():
    completions = [r"\boxed{3}", r"so \boxed{4}", "nothing"]
    options = {"mode": "kimi", "unit": "characters", "prompts": ["p"] * 3, "answer": ["3"] * 3}
    span = len(completions[1]) - len(completions[2])
    expected = [0.5 - (len(completions[0]) - len(completions[2])) / span, -0.5, 0]
    assert length(completions=completions, **options) == pytest.approx(expected)


def test_units():
    completions = ["two words", "两个字", [{"role": "assistant", "content": "a b c d"}], ""]
    options = {"completions": completions, "limit": 4, "cache": 4}
    assert length(**options, unit="words") == [-0.5, -0.75, -1, 0]
    assert length(**options, unit="characters") == [-1, -0.75, -1, 0]
    with pytest.raises(ValueError, match="completion_ids"):
        length(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "dap"}, "'dap'"),
        ({"unit": "token", "limit": 5}, "'token'"),
        ({}, "needs limit"),
        ({"mode": "cosine"}, "needs limit"),
        ({"limit": 0}, "above 0"),
        ({"limit": math.nan}, "above 0"),
        ({"limit": True}, "above 0"),
        ({"limit": "9"}, "above 0"),
        ({"limit": 10, "cache": 11}, "from 0 to limit=10"),
        ({"limit": 10, "cache": -1}, "from 0 to limit=10"),
        ({"mode": "cosine", "limit": 10, "min_value_wrong": 0.5}, "above its max"),
        ({"mode": "cosine", "limit": 10, "max_value_correct": 0.1}, "above its max"),
        ({"mode": "cosine", "limit": 10, "exceed": math.inf}, "finite"),
    ],
)
def test_impossible_options_are_refused_at_the_start_and_at_every_call(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)
    with pytest.raises(ValueError, match=message):
        length(**ids(3), **options, answer=["1"], prompts=["p"])


def test_possible_options_start():
    for options in (
        {"limit": 5},
        {"mode": "kimi", "scope": "group"},
        {"mode": "cosine", "limit": 5, "exceed": -10, "correct": True},
    ):
        start(**options)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="`answer`"):
        length(**ids(3), mode="cosine", limit=9)
    with pytest.raises(ValueError, match="no prompts"):
        length(**ids(3), mode="kimi", correct=True)
