import pytest

from ruyi_rl.rewards.mathematics.extraction import MAX_TEXT, boxes, final_answers, gold_answer


@pytest.mark.parametrize(
    "text, found",
    [
        (r"a \boxed{1} b", ["1"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}"]),
        (r"\fbox{5}", ["5"]),
        (r"\boxed{5} and \boxed{6}", ["5, 6"]),
        (r"\boxed{5}. But a long time after that it turns out that \boxed{6}", ["5", "6"]),
        (r"<think>\boxed{4}</think> it is \boxed{5}", ["5"]),
        (r"\boxed{4}</think> it is \boxed{5}", ["5"]),
        (r"<think>\boxed{4}</think> no idea", ["no idea"]),
        (r"<think>\boxed{4}", []),
        ("3 * 4 = 12\n#### 12", ["12"]),
        ("The answer is $x = 3$, as asked.", ["x = 3"]),
        ("The final answer is 7. I hope it is correct.", ["7"]),
        ("**Answer:** 7", ["7"]),
        ("综上,答案是 5。", ["5"]),
        ("a\n<answer>\n5\n</answer>", ["5"]),
        ("A: 26", ["26"]),
        (r"\framebox{7} apples", ["7"]),
        ("最终答案:$x=3$。", ["x=3"]),
        ("结果是５元", ["５元"]),
        ("Final Answer: Jane planted it 3 hours ago.", ["3"]),
        ("We add. Therefore, the error grows by 100%.", ["100%"]),
        ("Therefore, it is not 5.", ["not 5"]),
        ("Soucis : 2,74 $ a..", ["2,74"]),
        ("f(x) = x-1", ["f(x) = x-1"]),
        (r"first \boxed{200}. Then, a good while after, \boxed{255}. The final answer is $455$.", ["455"]),
        (r"The price is $ \frac{1}{2} \$ $", [r"\frac{1}{2} \$"]),
        ("<answer>\\boxed{3}</answer>", ["3"]),
        ("<thinking>the answer is 4</thinking>The answer is 5", ["5"]),
        (r"\boxed{1} is unfinished: \boxed{2", ["1"]),
        ("", []),
        ("word " * 200, []),
    ],
)
def test_final_answers(text, found):
    assert final_answers(text) == found


def test_boxes_know_their_place():
    text = r"x \boxed{a{b}} y"
    (found,) = boxes(text)
    assert text[found.start : found.end] == r"\boxed{a{b}}"


def test_answers_are_looked_for_at_the_end():
    assert final_answers(r"\boxed{1}" + " word" * MAX_TEXT + r" \boxed{2}") == ["2"]
    assert final_answers("<think>" + "word " * MAX_TEXT + r"\boxed{2}") == []


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("5", "5"), ("$5$", "5"), (r"\boxed{5}", "5"), ("2 + 3 = 5\n#### 5", "5"), (r"\[x = 2\]", "x = 2"),
        (r"\(x\).", "x"), (r"\\boxed{W = 1 ", "W = 1"), (r"so $\boxed{\frac12}$, as asked", r"\frac12"),
    ],
)  # fmt: skip
def test_gold_answers(gold, answer):
    assert gold_answer(gold).strip() == answer
