import random
import re

import pytest

from ruyi_rl.rewards.loading import load_function

score = load_function("rewards/multiple_choice.py")
CITIES = ["London", "Paris", "Rome", "New York"]


def letters(text, **columns):
    """What was read: the column that the reward logs."""
    logged = {}
    score(completions=[text], answer=["A"], log_extra=logged.__setitem__, **columns)
    return logged["multiple_choice/answer"][0]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Answer: C", "C"),
        ("answer : $C$", "C"),
        ("I weigh A and B.\n\n**Answer:** (C)", "C"),
        ("The answer is C.", "C"),
        ("The correct answer is: **C) Rome**", "C"),
        ("So the final answer is option C, since B is too small", "C"),
        ("Answer:\nC", "C"),
        (r"so \boxed{C}", "C"),
        (r"so $\boxed{\text{(C)}}$", "C"),
        (r"so \boxed{\mathrm{C}. Rome}", "C"),
        (r"Answer: \textbf{C}", "C"),
        ("<answer>c</answer>", "C"),
        ("答案：C", "C"),
        ("答案是（C）。", "C"),
        ("正确答案为Ｃ", "C"),
        ("综上，故选Ｃ。", "C"),
        ("应选C，不选A", "C"),
        ("C", "C"),
        ("(c)", "C"),
        ("C.", "C"),
        ("Let me see\n\nC", "C"),
        ("Answer: A because B is wrong", "A"),
        ("Answer: J", "J"),
        # The last one counts, whatever its form.
        ("Answer: B\nNo, wait. Answer: C", "C"),
        (r"\boxed{B} … on second thoughts the answer is C", "C"),
        (r"The answer is B. Hence \boxed{C}", "C"),
        ("The answer is C, not B", "C"),
        # Several letters are several answers.
        ("Answer: A or B", "AB"),
        ("Answer: A, C", "AC"),
        ("Answer: both A and C", "AC"),
        ("答案：ABD", "ABD"),
        ("Answer: C, A is wrong", "C"),
        # Words are no letters.
        ("The answer is a prime number", ""),
        ("Answer: I believe that it is hard", ""),
        ("Answer: Apples", ""),
        ("A good question", ""),
        ("Because Dad said so", ""),
        ("the answer is added below", ""),
        ("<think>Answer: C</think>", ""),
        ("<think>Answer: B</think>Answer: C", "C"),
        ("Answer: K", ""),
        ("", ""),
    ],
)
def test_letter_that_is_read(text, expected):
    assert letters(text) == expected


def test_published_pattern_agrees_where_it_finds_one_letter():
    published = re.compile(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?(?![a-z])")
    draw = random.Random(0)
    parts = [" Answer:", " answer :", " ", "\t", "$", "A", "B", "C", "D", "\n", ".", "so", "42", ")"]
    seen = 0
    for _ in range(3000):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(2, 9)))
        found = published.findall(text)
        read = letters(text)
        if found and len(read) == 1 and text.lower().count("answer") == 1:
            seen += 1
            assert read == found[-1].upper(), text
    assert seen > 100


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The answer is Paris.", "B"),
        (r"\boxed{\text{New York}}", "D"),
        ("Answer: new  york", "D"),
        ("Paris", "B"),
        ("B) Paris", "B"),
        ("I was in Paris", ""),
        ("A. London is where I was", ""),
        ("Answer: Parisian", ""),
    ],
)
def test_text_of_a_choice(text, expected):
    assert letters(text, choices=[CITIES]) == expected


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "Ｂ", "B.", 1, "1", "Paris", "$paris$"])
def test_spellings_of_the_gold(gold):
    assert score(completions=["Answer: B", "Answer: A"], answer=[gold] * 2, choices=[CITIES] * 2) == [1, 0]


def test_labels_of_a_data_set():
    numbered = {"text": CITIES, "label": ["1", "2", "3", "4"]}
    texts = ["Answer: 2", "Answer: (2)", "Answer: B", "Answer: Paris", "2", "Answer: 2.5", "Answer: 20", "Answer: 3"]
    assert score(completions=texts, answer=["2"] * 8, choices=[numbered] * 8) == [1, 1, 1, 1, 1, 0, 0, 0]


def test_several_right_letters():
    texts = ["Answer: A, C", "Answer: AC", "Answer: C and A", "Answer: A", "Answer: ABC"]
    assert score(completions=texts, answer=["A,C"] * 5) == [1, 1, 1, 0, 0]


def test_rows_without_answer_and_unusable_ones():
    assert score(completions=["Answer: A", "Answer: A"], answer=[None, " "]) == [None, None]
    with pytest.raises(ValueError, match="'2' names no choice.*choices"):
        score(completions=["Answer: A"], answer=["2"])
    with pytest.raises(ValueError, match="4 names no choice"):
        score(completions=["Answer: A"], answer=[4], choices=[CITIES])
