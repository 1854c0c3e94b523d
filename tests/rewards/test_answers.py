import importlib.util
from pathlib import Path

import pytest

from ruyi_rl.rewards.answers import judge
from ruyi_rl.rewards.mathematics import parser_check

PLUGIN = Path(__file__).parents[2] / "rewards" / "math_answer.py"


def box(answer):
    return rf"so $\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    "text, gold",
    [
        (box("5"), "5"), (r"\fbox{5}", "5"), ("#### 5", "5"), ("The answer is 5.", "5"), ("答案是5", "5"),
        ("答案:5元", "5"),
        ("故选:C", "C"), ("因此,正确答案是 C 选项", "C"), ("答案是五", "5"), ("共有5个。", "5"),
        ("设他有x个。\n因此,他一共有5个。", "5"),
        ("四分之三", "3/4"), (box("15000"), "1.5万"), (box("3:20"), "3时20分"),
        ("<answer>5</answer>", "5"), ("5", 5), ("12.50", 12.5), (box("甲"), r"\text{甲}"), (box("C."), "C"),
        (box("x<-5"), r"(-\infty,-5)"), (box(r"50\%"), "50"), (box("５"), "5"), (box("2"), ["1", "2"]),
        (r"<think>\boxed{4}</think> it is \boxed{5}", "5"), (r"\boxed{1} and \boxed{2}", "1, 2"),
        (box("18"), "Janet sells 9 * 2 = 18 eggs.\n#### 18"),
        (box("5") + " some more words than before. " + box("5.0"), "5"),
        (r"<answer>5</answer> so \boxed{5.0}", "5"), ("Therefore, $x = 42$.", "42"), ("答案是负三", "-3"),
        ("The answer is C because D is wrong", "C"),
    ],
)  # fmt: skip
def test_accepted(text, gold):
    assert judge(text, gold).correct is True


@pytest.mark.parametrize(
    "text, gold, reason",
    [
        (r"<think>\boxed{5}</think> I do not know.", "5", "different"),
        (r"<think>\boxed{5}", "5", "no_answer"),
        ("<think>The answer is 5", "5", "no_answer"),
        ("word " * 200, "5", "no_answer"),
        ("1 2 3 4 5", "5", "different"),
        ("@@ 5 ##", "5", "different"),
        (r"\boxed{5} or \boxed{6}", "5", "different"),
        (box("5") + " but a longer look at the question says " + box("6"), "5", "different"),
        (box("5") + " but a longer look at the question says " + box("6"), "6", "contradiction"),
        ("".join(box(n) + "x" * 20 for n in range(70)), "69", "flood"),
        (box("7=5"), "5", "different"),
        (box("x=1=5"), "5", "chain"),
        (box(r"\int_0^1 x^2 dx"), "1/3", "restated"),
        (box(r"\sum_{k=1}^{100} k"), "5050", "restated"),
        (box(r"\gcd(12,18)"), "6", "restated"),
        (box("6.63e-34"), "0", "different"),
        (box("2e-7"), "1e-7", "different"),
        (box(r"5\text{ m}"), r"5\text{ cm}", "different"),
        (box("1010_3"), "1010_2", "different"),
        (box("24:60"), "12:30", "different"),
        ("答案不是5", "5", "different"),
        ("答案可能是5或6", "5", "different"),
        (box("1.5"), "1.5万", "different"),
        (box("5 千克"), "5 克", "different"),
        (box(r"16\text{ cm}^3"), r"16\text{ cm}^2", "different"),
        (box("1" * 4000), "5", "too_long"),
        (box("9^{9^{9}}"), r"\sqrt{2}", "too_costly"),
        (r"<answer>6</answer> \boxed{5}?", "6", "different"),
        (r"<answer>6</answer> \boxed{5}?", "5", "contradiction"),
        ("The answer is C because D is wrong", "D", "different"),
        (box("2^3^2"), "64", "ambiguous"),
        (box(r"\lfloor 5.5 \rfloor"), "5", "restated"),
    ],
)
def test_refused(text, gold, reason):
    verdict = judge(text, gold)
    assert (verdict.correct, verdict.reason) == (False, reason)


@pytest.mark.parametrize("gold", [None, "", [], [None, ""], " "])
def test_no_gold(gold):
    assert (judge(box("5"), gold).correct, judge(box("5"), gold).reason) == (None, "no_gold")


@pytest.fixture
def plugin():
    spec = importlib.util.spec_from_file_location("math_answer", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reward_logs_its_reasons(plugin):
    logged = {}
    messages = [{"role": "assistant", "content": box("2")}]
    rewards = plugin.math_answer(
        [box("1"), messages, "the answer is 3"], answer=["1", "3", None], log_extra=logged.__setitem__
    )
    assert rewards == [1.0, 0.0, None]
    assert logged["math_answer/reason"] == ["equal_text", "different", "no_gold"]
    assert logged["math_answer/answer"] == ["1", "2", ""]
    with pytest.raises(ValueError):
        plugin.math_answer(["1"], answer=["1", "2"])


def test_a_changed_parser_stops_the_start(plugin, monkeypatch):
    plugin._start()
    monkeypatch.setattr(parser_check, "TABLE", (("1", "2", True),))
    with pytest.raises(parser_check.ParserChanged):
        plugin._start()
