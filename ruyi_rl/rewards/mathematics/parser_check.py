"""The self-test of the parser behind the symbolic comparison, run once before a reward judges anything.

math-verify parses LaTeX through antlr, and the same math-verify grades differently on different antlr releases without
a word: `\\boxed{50\\%}` is 50 on 4.13.2 and is not on 4.9.3, which hydra-core pins. `notation` takes such forms away
before the parser sees them; on 3,000 pairs our verdicts are then the same on both. This table notices when that ends.
"""

from importlib.metadata import PackageNotFoundError, version

from ruyi_rl.rewards.mathematics.symbolic import TooCostly, forget_parses, same_expression

PACKAGES = ("antlr4-python3-runtime", "latex2sympy2_extended", "math-verify", "sympy")

TABLE = (
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{x}{2}+1", r"\frac{1}{2}x+1", True),
    (r"\frac{x}{2}+1", r"\frac{x+1}{2}", False),
    ("-3^2", "-9", True),
    ("2x", "x^2", False),
    ("x_1", "x_2", False),
    (r"\gamma+1", r"1+\gamma", True),
    (r"\gamma", r"\eta", False),
    (r"\sqrt[3]{54}", r"3\sqrt[3]{2}", True),
    (r"\sin x\cos x", r"\cos x\sin x", True),
    (r"\binom{5}{2}", "10", True),
    ("y=2x", "2x-y=0", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"\{1,2\}", r"\{1,3\}", False),
    (r"\begin{pmatrix}1 & 2\end{pmatrix}", r"\begin{pmatrix}2 & 1\end{pmatrix}", False),
    (r"\begin{pmatrix}1 & 2\end{pmatrix}", r"\begin{pmatrix}1 & \frac{4}{2}\end{pmatrix}", True),
)
"""Gold answer, answer, verdict. None of these is decided before the parser."""


class ParserChanged(RuntimeError):
    """The parser grades otherwise than the rules around it were built for."""


def check_parser() -> None:
    """Grade the table.

    Raises:
        ParserChanged: where a verdict differs; the message names the pair and the versions of all packages involved.
    """
    forget_parses()
    for gold, answer, expected in TABLE:
        try:
            # Without a limit: on a busy machine a worker's first parse may take seconds, and is no other parser's.
            verdict = same_expression(gold, answer, seconds=None)
        except TooCostly as refusal:
            verdict = refusal.reason
        if verdict is not expected:
            raise ParserChanged(
                f"the answer {answer!r} for {gold!r} is graded {verdict}, not {expected}: the parser of mathematics "
                f"has changed, and rewards would silently change with it. Installed: {_installed()}. Install the "
                "versions that pyproject.toml names, or measure the labelled pairs anew."
            )


def _installed() -> str:
    return ", ".join(f"{package} {_version(package)}" for package in PACKAGES)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
