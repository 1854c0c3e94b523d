"""Answers built to hang, crash or fill the judge, one by one and mixed into a hundred times as many normal ones."""

import threading
import time

import pytest

from ruyi_rl.rewards.answers import judge
from ruyi_rl.rewards.mathematics.parser_check import check_parser
from ruyi_rl.rewards.mathematics.symbolic import SECONDS

MATRIX = r"\begin{pmatrix}1 & x\\y & 2\end{pmatrix}"

BOMBS = {
    "tower": (r"9^{9^{9^{9}}}", "1"),
    "bare tower": ("9^9^9^9", "1"),
    "power": (r"2^{1000000000}", "1"),
    "power in brackets": ("2^(10^9)", "1"),
    "fraction power": (r"(3/7)^{(10^6)}", "1"),
    "factorial": ("(10^9)!", "1"),
    "factorials": ("10!!!!!!!!", "1"),
    "nested factorials": ("((((5!)!)!)!)!", "1"),
    "binomial": (r"\binom{10^9}{5\cdot 10^8}", "1"),
    "binomial of a letter": (r"\binom{n}{1000000}", "n"),
    "binomial of a fraction": (r"\binom{1/2}{1000000}", r"\sqrt{2}"),
    "nested tan": (r"\tan(" * 40 + "1" + ")" * 40, "1"),
    "three tan": (r"\tan(" * 3 + "1" + ")" * 3, r"\sqrt{2}"),
    "large angle": (r"\sin(10^{1000})", r"\sqrt{2}"),
    "nested fractions": (r"\frac{1}{" * 40 + "2" + "}" * 40, "1"),
    "brackets": ("(" * 20_000 + "5" + ")" * 20_000, "6"),
    "braces": ("{" * 20_000 + "5" + "}" * 20_000, "6"),
    "open brackets": ("(" * 20_000, "6"),
    "digits": ("1" * 10**6, "5"),
    "decimals": ("0." + "3" * 5000, "1/3"),
    "dollars": ("$ $ " * 20_000, "5"),
    "spaces": (" " * 200_000 + "x", "5"),
    "letters": ("a" * 100_000, "5"),
    "backslashes": ("\\" * 100_000, "5"),
    "commas": ("," * 100_000, "5"),
    "equals": ("=" * 50_000, "5"),
    "answers": ("the answer is " * 20_000, "5"),
    "thoughts": ("<think>" * 20_000, "5"),
    "ended thoughts": ("</think>" * 20_000, "5"),
    "tags": ("<answer>" * 20_000, "5"),
    "boxes": ("} ".join(rf"\boxed{{{n}" for n in range(20_000)), "19999.5"),
    "open boxes": (r"\boxed{" * 20_000, "5"),
    "nested boxes": (r"\boxed{" * 20_000 + "5" + "}" * 20_000, "6"),
    "set of 1000": (
        r"\{" + ",".join(map(str, range(1000))) + r"\}",
        r"\{" + ",".join(map(str, range(1, 1001))) + r"\}",
    ),
    "set of 5000": (r"\{" + ",".join(map(str, range(5000))) + r"\}", "5"),
    "roots": (",".join(rf"\sqrt{{{n}}}" for n in range(150)), ",".join(rf"\sqrt{{{n}}}" for n in range(1, 151))),
    "integral": (r"\int_0^1 x^x dx", "1"),
    "integral for an integral": (r"\int_0^\infty \frac{\sin^4 x}{x^4} dx", r"\int_0^\infty \frac{\sin^3 x}{x^3} dx"),
    "product": (r"\prod_{k=1}^{10^8} k", r"\prod_{k=1}^{10^7} k"),
    "sum": (r"\sum_{k=1}^{10^8} \frac{1}{k}", r"\sum_{k=1}^{10^7} \frac{1}{k}"),
    "limit": (r"\lim_{n\to\infty} (1+\frac{1}{n})^{n^n}", r"\lim_{n\to 0} n^n"),
    "expansion": ("(a+b+c+d+f)^{500}", "(a+b+c+d-f)^{500}"),
    "matrix power": (MATRIX + "^{397}", MATRIX),
    "matrix root": (rf"\sqrt[7]{{{MATRIX}}}", MATRIX),
    "inequality": ("k^{442}<10^{19}", "k^{442}<10^{20}"),
    "signs": ("(" + r"\pm 1," * 30 + "2)", "(1,2)"),
    "surrogates": ("\0\ud800" * 1000 + "5", "5.5"),
    "odd characters": ("\u202e5\u200d\U0001f600\x1b[2J", "5.5"),
    "exponent": ("1e999999999", "5"),
    "tiny": ("10^{-999}", "0"),
    "base": ("1" * 200 + "_{2}", "5"),
    "power of a unit": (r"5 \text{cm}^{10^9}", "6"),
}
FORMS = ("{}", r"so $\boxed{{{}}}$.", "The answer is {}", "#### {}")


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_bombs_are_refused_soon(where):
    check_parser()
    slow, accepted = [], []

    def run():
        for name, (answer, gold) in BOMBS.items():
            for form in FORMS if where == "main thread" else FORMS[1:2]:
                start = time.thread_time()
                verdict = judge(form.format(answer), gold)
                if verdict.correct:
                    accepted.append((name, form))
                if time.thread_time() - start > SECONDS:
                    slow.append((name, form))

    if where == "main thread":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert slow == [] and accepted == []


def test_a_bomb_in_the_gold_answer():
    check_parser()
    for name, (bomb, _) in BOMBS.items():
        start = time.process_time()
        assert judge(r"\boxed{\sqrt{7}}", bomb).correct is not True, name
        assert time.process_time() - start < SECONDS, name


def test_normal_answers_between_bombs():
    """One bomb in a hundred: every normal verdict as without them, in order."""
    check_parser()
    normal = [(rf"we add and get \boxed{{{n}}}", str(n + n % 2)) for n in range(100 * len(BOMBS))]
    alone = [judge(text, gold) for text, gold in normal]
    mixed = []
    for place, (answer, gold) in enumerate(BOMBS.values()):
        mixed += [judge(text, gold) for text, gold in normal[100 * place : 100 * (place + 1)]]
        judge(FORMS[1].format(answer), gold)
    assert mixed == alone
    assert [verdict.correct for verdict in mixed] == [n % 2 == 0 for n in range(len(mixed))]


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n", "$", "$$", "\\", "{", "}", r"\boxed", r"\boxed{", r"\boxed{}", "####", "####  ", "答案",
     "the answer is", "</think>", "<answer></answer>", "\0", "\ud800"],
)  # fmt: skip
def test_next_to_nothing(text):
    for gold in ("5", r"\sqrt{2}", "(1,2)", "甲", "x=1"):
        assert judge(text, gold).correct is False
    assert judge("5", text).correct in (None, False)
