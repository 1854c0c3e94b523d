import pytest

from ruyi_rl.rewards.mathematics.cost import too_costly


@pytest.mark.parametrize(
    "expression",
    [
        "9^9^9^9", "9^{9^{9^{9}}}", "2^{1000000000}", "2^(10^9)", "2**(10**9)", r"(3/7)^{(10^6)}",
        r"(\frac{3}{7})^{10^6}",
        "(10^9)!", "10!!!!!!!!", "((((5!)!)!)!)!", r"\binom{10^9}{5\cdot 10^8}", r"\binom{n}{1000000}",
        r"\binom{\pi}{645}",
        r"e^{e^{e^{e^e}}}", r"\exp(\exp(10^6))", r"\sin(10^{1000})", r"\cos((283\pi)!)", "1" * 41, "x" * 401,
        "(" * 10 + "x" + ")" * 10, r"\tan(" * 4 + "1" + ")" * 4, "x^{" * 4 + "x" + "}" * 4,
        r"\begin{pmatrix}1 & x\\y & 2\end{pmatrix}^{397}", r"\sqrt[5]{\begin{pmatrix}1 & x\\y & 2\end{pmatrix}}",
        r"\sum_{i=1}^n \sum_{j=1}^n \int_0^1 x dx", "2^{2^{2^{2^2}}}", "(2^{500})^{500}", "10^{8001}", "(99!)!",
        "((((((((2^9)^9)^9)^9)^9)^9)", "1.5^{10000}",
    ],
)  # fmt: skip
def test_bombs(expression):
    assert too_costly(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "5", r"\frac{10^{2024}-1}{9}", "2^{2005}", "100!", r"\frac{2004!}{2003!}"[:7], r"\binom{1000}{500}", "x^{100}",
        r"\frac{1}{1+\frac{1}{1+\frac{1}{1+x}}}", r"\sin(\cos(x))", "x^{y^{z}}", "e^{-x^2/2}", r"\log(10^{500})",
        "(-1)^{n+1}",
        r"\begin{pmatrix}1 & x\\y & 2\end{pmatrix}^{2}", r"\binom{n}{2}", r"\sqrt[3]{2}", "1" * 40, r"\sum_{k=1}^n k^2",
        "3^{1/3}", "6.02 \\times 10^{23}", "", "^", "!", r"\frac", "((", "))", "]", r"\binom", "_{", r"\begin{",
        r"\end",
    ],
)  # fmt: skip
def test_answers(expression):
    assert not too_costly(expression)
