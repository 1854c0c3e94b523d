import itertools

import pytest
from trl.rewards import think_format_reward

from ruyi_rl.rewards.loading import load_function, start_hook

score = load_function("rewards/format.py")
GOOD = "<think>a</think><answer>5</answer>"


@pytest.mark.parametrize(
    "text, pattern, tags",
    [
        (GOOD, 1, 1),
        ("\n<think>\na\n</think>\n\n<answer>\n5\n</answer>\n", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        (GOOD + " and more", 0, 1),
        ("so " + GOOD, 0, 1),
        ("<think>a</think> so <answer>5</answer>", 0, 1),
        ("<answer>5</answer><think>a</think>", 0, 1),
        (GOOD + GOOD, 0, 0),
        ("<think>a</think>5", 0, 0.5),
        ("<think>a<think>b</think><answer>5</answer>", 0, 0.75),
        ("<answer>5", 0, 0.25),
        ("", 0, 0),
    ],
)
def test_both_modes(text, pattern, tags):
    chat = [{"role": "assistant", "content": text}]
    assert score(completions=[text, chat], prompts=["", ""]) == [pattern, pattern]
    assert score(completions=[text, chat], mode="tags") == [tags, tags]


def test_thinking_opened_by_the_template():
    assert score(completions=[GOOD.removeprefix("<think>"), GOOD], opened=True) == [1, 0]


@pytest.mark.parametrize("text", ["", "ab\n", "<think>", "</think>", "<answer>", "x</answer>", GOOD])
def test_think_mode_against_trls(text):
    """Ours is TRL's, but for a missing text after the thinking and a second end of it, which ours does not take."""
    for pieces in itertools.product(["", "<think>", "</think>", "b", "\n"], repeat=3):
        whole = "".join(pieces) + text
        theirs = think_format_reward([[{"role": "assistant", "content": whole.strip()}]])[0]
        ended_once, answered = whole.count("</think>") == 1, whole.partition("</think>")[2].strip() != ""
        assert score(completions=[whole], mode="think") == [theirs if ended_once and answered else 0]


def test_tags_mode_is_open_r1s_where_every_tag_has_its_line():
    good = "<think>\na\n</think>\n<answer>\n5\n</answer>"
    # The four texts that open-r1 counts; it gives .25 for each that stands exactly once.
    counted = ["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"]
    for dropped in itertools.product([0, 1, 2], repeat=4):
        text = good
        for part, times in zip(counted, dropped, strict=True):
            text = text.replace(part, "\n\n" if times == 0 else part * times)
        assert score(completions=[text], mode="tags") == [sum(text.count(part) == 1 for part in counted) / 4]
    assert score(completions=[good], mode="tags") == [1]


@pytest.mark.parametrize("options", [{"mode": "tagz"}, {"opened": "yes"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        start_hook("rewards/format.py")(**options)
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        score(completions=[GOOD], **options)
