import pytest

from ruyi_rl.rewards.mathematics.equality import Comparison, same_answer


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("1,234", "1234"), ("0.5", r"\frac12"), (r"\frac{3}{2}", r"1\frac{1}{2}"), ("12000", r"1.2 \times 10^4"),
        ("50", r"50\%"), (r"50\%", "0.5"), (r"90^\circ", "90"), ("5", "５"), ("5", "5元"), ("甲", r"\text{甲}"),
        ("36", r"\$36"), ("12", r"12\text{ square feet}"), ("C", "C."), (r"\text{(C)}", "C"),
        ("B", r"\text{(B) } 12"),
        ("1/3", "0.3333"), ("6.46", r"\frac{84}{13}"), (r"\pi", "3.14159"), (r"41.4\%", r"\sqrt{2}-1"),
        ("1,2", "2,1"), (r"\{1,2\}", "2, 1"), ("x=1或x=2", "x=2,x=1"), (r"3 \pm \sqrt{2}", r"3-\sqrt2, 3+\sqrt2"),
        ("p=3,q=4", "3,4"), ("(1,2)", r"\left(1,2\right)"), ("(x,y)=(1,2)", "(1,2)"), ("x=5", "5"), ("5", "x=5"),
        ("x<-5", r"(-\infty,-5)"), (r"[-2,7]", r"-2 \le x \le 7"),
        (r"x \le 1 \text{ or } x \ge 3", r"(-\infty,1]\cup[3,\infty)"),
        (r"\{x|-2<x<3\}", "(-2,3)"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\gamma+1", r"1+\gamma"),
        ("y=2x+1", "2x-y+1=0"), ("f(x)=x+1", "f(t)=t+1"), (r"\tan^2(y)+1", r"\sec^2(y)"), ("1010_2", "1010"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"), ("2:1", "2"),
        ("5", "((5))"), ("x^2+1", "1 + x^2"), ("1+i", "i+1"), ("5!", "120"), ("2^{10}", "1024"),
        (r"\mathbb{R}\setminus\{1\}", r"x \ne 1"), (r"(-\infty,0)\cup(0,2)", r"x<2 \text{ and } x\neq 0"),
        (r"(-2,2)", "|x|<2"), ("x>3", "3<x"), ("165.47", r"165.5\text{ g}"), ("3.14159", "3.1416"),
        (r"\frac{1}{3}", r"33.33\%"), ("odd", r"\text{It is odd}"), ("Petya", "Petya wins the game."),
        ("yes", "Yes, it is possible."), ("ABD", "A、B、D"), ("(B)", "B. 12"), ("2i", "(1+i)^2"), ("1", "\\boxed{1}"),
        (r"x=\frac{\pi}{4}+k\pi, k\in\mathbb{Z}", r"\frac{\pi}{4}+n\pi"), ("(2,3),(3,2)", "(3,2),(2,3),(3,2)"),
        ("a=2,b=3", "b=3,a=2"), (r"\ln 2", r"\log_e 2"), ("1 = y = x = 0", "0"), ("60^\textcirc", "60°"),
        ("90^", "90"),
        (r"\begin{pmatrix}1\\\frac12\end{pmatrix}", "(1,0.5)"), ("x<5", "5>x"), ("x<y+1", "y>x-1"), ("2x<2y", "x<y"),
        ("x^2+y^2-4=0", "x^2+y^2=4"),
        ("W(n)=1 and W(n)=-1", "W(x)=1orW(x)=-1"), ("12", "12,"), (r"\sum_{k=1}^n k", r"\sum_{j=1}^n j"),
        ("3/4", "75%"), ("3 hours", "180 minutes"), ("1000", "1 000"), ("1000000", r"1\,000\,000"), ("3/2", "1 1/2"),
        (r"1010_{\text{two}}", "1010_2"), (r"\{\}", r"\emptyset"), ("(1,2)", r"\langle 1,2\rangle"), ("3", "第3个"),
        ("no solution", r"\text{no real solutions}"), ("无解", "no solutions"), ("12", "twelve"), ("-3", "负三"),
        ("9:00 AM", "9 a.m."), ("0.3", "0.30000000000000004"), (r"\sqrt{2}", "1.41421356"),
        ("a^2b^2", "b^2a^2"),
    ],
)  # fmt: skip
def test_right_answers(gold, answer):
    assert same_answer(gold, answer)


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("5", "7=5"), ("5", "x=1=5"), ("42", "12+30"), ("42", "12+30=42"), ("1/3", r"\int_0^1 x^2 dx"),
        ("6", r"\gcd(12,18)"), ("5050", r"\sum_{k=1}^{100} k"), ("1", r"\lim_{x\to 0}\frac{\sin x}{x}"),
        ("0", "6.63e-34"), ("1e-7", "2e-7"), ("10000", "10000.5"), ("3", "3.0001"), ("1/3", "0.33"), (r"\pi", "3.14"),
        (r"5\text{ cm}", r"5\text{ m}"), ("3 hours", "181 minutes"), ("12:30", "24:60"), ("1010_2", "1010_3"),
        ("5", "5,6"), ("5", r"5 \text{ or } 6"), ("5", r"\{4,5,6\}"), ("5", ""), ("1,1,2", "1,2,2"), ("1,2,3", "1,2"),
        ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("p=3,q=4", "4,3"), ("x=5", "y=5"), ("x^2+1", "y^2+1"), ("x", "|x|"),
        ("x>=3", r"(3,\infty)"), ("2x", "2"), ("5m", "5"), ("2abc", "2"), (r"\gamma+1", r"1+\eta"),
        ("x^2+y^2=1", "1"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), ("2^{100}-2", "2^{100}"), (r"\frac{3}{2}", r"\frac{3}{0}"),
        (r"\begin{pmatrix}1 & 0 \\ 0 & 1\end{pmatrix}", r"\begin{pmatrix}1 & 2 \\ 0 & 1\end{pmatrix}"),
        (".28", "28"), ("28", "28/100"), (r"\text{even}", r"\text{odd}"), ("甲", "乙"), (r"\infty", r"-\infty"),
        ("100000000000000000001", "100000000000000000000"), ("54.4", "54.44"), ("x<y+1", "x>y+1"),
        ("x<y+1", "-x<-y-1"), ("x<y", r"x\le y"),
        (r"27^\circ", r"27\%"),
        (r"40^\circ", "40 m"), (r"10\%", r"10\text{ cm}"), ("10 cm", r"10\%"),
        ("B", "(B), (C)"), ("B", "(B), 17"),
        ("(B)", "B or C"), ("xy", "-xy"), ("odd", "-odd"), ("x+y+z=0", "x-y+z=0"), ("2^{4181}", "2^{4181}+1"),
        ("-37_8", "-37_78"), ("11", "10_2+1"),
        ("f(n)=n", "f(m)=n"), ("x(t)=e^t", "y(t)=e^t"), ("x=1,2", "y=1,2"),
        (r"\{x|x<3\}-\{a\}", r"\{x|x<3\}-\{a\}+1"),
        (r"\sqrt{2}", r"\sqrt{2} \approx 1.7"), ("5", r"5 \approx 7"), (r"\frac{1}{2004!}", r"\frac{1}{2005!}"),
        ("5", "5=5=5"), ("12", r"3\cdot 4"),
        ("(-2,2)", r"|x|\le 2"),
        (r"\mathbb{R}\setminus\{1\}", r"x \ne 2"), ("x>3", "y>3"), ("x>3", "x<3"), ("165.47", "165"),
        ("12.55", "12.56"),
        ("165.47", "165.6"), ("odd", "The function is not odd"), ("odd", "The function is even"),
        ("yes", "No, never."),
        ("Petya", "Petya does not win the game"), ("Petya", "Petya loses to Vasya"), ("ABD", "A,B,C"), ("2i", "-2i"),
        ("3+4i", "3-4i"), (r"\frac{\pi}{4}+k\pi", r"\frac{\pi}{4}+2n\pi"), ("(2,3),(3,2)", "(2,3)"),
        ("(2,3)", r"\{2,3\}"),
        ("x^2+y^2=4", "x^2-y^2=4"), ("x<5", r"x \le 5"), ("8:00 AM", "8:00 PM"), ("1:2", "2:1"), ("100", "99.99"),
        ("12", "12_4"), ("1/2", r"\frac{1}{2}x"), ("5", "the 5th of 6"), ("x^2", "x^2+C"), ("3,4", "3.4"),
        (r"50\%", "0.05"),
        (r"\sum_{k=1}^n k", r"\sum_{j=1}^{n-1} j"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
        ("W=1,W=-1", "W=1"), ("12", "1 2"), ("35", "3 5"), ("1234", "12 34"), ("56", r"5 \quad 6"), ("56", r"5\;6"),
        ("5", r"\lfloor 5.5\rfloor"), ("3", r"\lfloor\pi\rfloor"), ("5", r"\lceil 4.5\rceil"), ("5", "|{-5}|"),
        ("64", "2^3^2"), ("512", "2^3^2"), ("C", r"\text{C is wrong}"), ("5", r"5\ldots"), ("5", "5..."),
        ("1", "0.9999999999"), ("3", "3.0000000001"), ("105", "一百五"), (r"\sqrt{2}", "1.41421357"),
        ("no solution", "one solution"), ("无解", "有解"), ("12", "thirteen"), ("9:00 PM", "9 a.m."),
        (r"1010_{\text{two}}", "1010_3"), (r"\{\}", r"\{0\}"), ("11/2", "1 1/2"),
    ],
)  # fmt: skip
def test_wrong_answers(gold, answer):
    assert not same_answer(gold, answer)


def _roots(*numbers):
    return ",".join(rf"\sqrt{{{number}}}" for number in range(*numbers))


@pytest.mark.parametrize(
    "gold, answer, reason",
    [
        ("5", "5", "equal_text"), ("1,000", "1000.0", "equal_number"), ("1,2", "2,1", "equal_structure"),
        (r"\sqrt{8}", r"2\sqrt{2}", "equal_symbolic"), ("5", "6", "different"), ("42", "12+30", "restated"),
        ("5", "x=1=5", "chain"), ("5", "1" * 5000, "too_long"), (r"\sqrt{2}", "2^{10^{9}}", "too_costly"),
        (r"\pi", "3.14159", "equal_symbolic"), (_roots(0, 12), _roots(20, 32), "different"),
        (_roots(0, 13), _roots(20, 33), "too_costly"), (_roots(0, 150), _roots(149, -1, -1), "equal_structure"),
    ],
)  # fmt: skip
def test_reasons(gold, answer, reason):
    comparison = Comparison()
    assert comparison.reason(same_answer(gold, answer, comparison)) == reason


def test_no_sympy_once_the_time_is_up():
    comparison = Comparison(deadline=0.0)
    assert not same_answer(r"\sqrt{8}", r"2\sqrt{2}", comparison) and comparison.reason(False) == "too_slow"
    assert same_answer("1/2", "0.5", Comparison(deadline=0.0))


SPELLINGS = (
    lambda answer: f"  {answer} ",
    lambda answer: answer.replace(r"\frac", r"\dfrac"),
    lambda answer: answer.replace(",", ", ").replace("+", " + "),
    lambda answer: answer.translate({ord(digit): chr(ord(digit) + 0xFEE0) for digit in "0123456789()+,"}),
    lambda answer: answer.replace("(", r"\left(").replace(")", r"\right)"),
    lambda answer: rf"\mathrm{{{answer}}}" if answer.isdigit() else answer,
)


@pytest.mark.parametrize(
    "answer", ["1234", r"\frac{3}{4}", "(1,-2)", "x^2+3x", r"[0,\frac{1}{2})", r"2\sqrt{3}+1", "1,2,3", "-0.25"]
)
@pytest.mark.parametrize("other", ["77", r"\frac{4}{3}", "(1,2)", "x^2-3x", "[0,1)", r"3\sqrt{2}+1", "1,2,4", "0.25"])
def test_spelling_changes_no_verdict(answer, other):
    for spelling in SPELLINGS:
        assert same_answer(answer, spelling(answer)), spelling(answer)
        assert not same_answer(other, spelling(answer)) and not same_answer(spelling(other), answer)
