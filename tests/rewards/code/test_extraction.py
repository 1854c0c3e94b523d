import pytest

from ruyi_rl.rewards.code.continuation import read_stub, whole_programs
from ruyi_rl.rewards.code.extraction import defines, extract_program

F = "def f(x):\n    return x"
G = "def g(x):\n    return 2 * x"


def block(code, tag="python"):
    return f"```{tag}\n{code}\n```"


@pytest.mark.parametrize(
    "text, program",
    [
        (block(F), F),
        (block(F, "py"), F),
        (block(F, "Python3"), F),
        (block(F, ""), F),
        (block(F, "python title=a.py"), F),
        (block(F).replace("\n", "\r\n"), F.replace("\n", "\r\n")),
        ("So:\n\n" + block(F) + "\nIt works.", F),
        (block(G) + "\nNo, better:\n" + block(F), F),
        (block(F) + "\nIt prints\n" + block("4", ""), F),
        (block(F) + "\n" + block("pip install numpy", "bash"), F),
        (block(F, "") + "\n" + block("pip install numpy", "bash"), F),
        (f"<think>{block(G)}</think>{block(F)}", F),
        (f"{block(G)}</think>{block(F)}", F),
        (f"<think>{block(G)}</think>{F}", F),
        (f"<think>{block(G)}", None),
        (f"<answer>\n{block(F)}\n</answer>", F),
        (f"<answer>{block(F)}</answer>\n", F),
        (f"<think>{G}</think> Then:\n  <answer>\n{F}\n</answer>", F),
        (f"{F}\nprint('<answer>1</answer>')", f"{F}\nprint('<answer>1</answer>')"),
        (f"```python\n{F}", F),
        (f"```python\n{F}\n", F),
        (f"```python\n{F}```", F),
        (f"Here: ```python\n{F}\n```", F),
        (f"````python\n{F}\n'''\n```\n'''\n````", F + "\n'''\n```\n'''"),
        (f"~~~python\n{F}\n~~~", F),
        ("1. First\n   ```python\n   def f(x):\n       return x\n   ```\n", F),
        ("Use ```f``` as\n" + block(F), F),
        (F, F),
        ("\n\n  \n" + F + "\n\n", F),
        ("    return x", "    return x"),
        (block("int main() {}", "cpp"), None),
        (block(""), None),
        ("```python", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_the_last_python_block_or_the_whole_text(text, program):
    assert extract_program(text) == program


def test_an_example_of_use_may_follow_the_function():
    text = block(F) + "\nTry it:\n" + block("print(f(2))")
    assert extract_program(text) == "print(f(2))"
    assert extract_program(text, ["f"]) == F
    assert extract_program(text, ["h"]) == "print(f(2))"
    assert extract_program("\n".join([block(G), block(F), block("g(2)")]), ["g", "f"]) == F


@pytest.mark.parametrize(
    "code", ["def f(x): 0", "async  def f(): 0", "f = abs", "f: int = 3", "from a import f", "class f: 0"]
)
def test_definitions(code):
    assert defines("import os\n" + code, "f")
    assert not defines(code.replace("f", "ff", 1) if code.startswith("f") else code, "ff(")


def test_no_definition_where_the_name_only_occurs():
    for code in ("x = f(3)", "    def f(): 0", "f == 3", "def fg(): 0", "# def f", "f(3)"):
        assert not defines(code, "f")


def test_long_and_nested_texts_take_linear_time():
    for text in (
        "```" * 300_000,
        "```python\n" * 90_000,
        "``` \n" * 90_000,
        "a```\n" * 90_000,
        "\n " * 450_000,
        "def f" * 90_000,
    ):
        extract_program(text, ["f", "g"])


PROMPT = 'import math\n\ndef half(x):\n    return x / 2\n\ndef area(r):\n    """ Area. """\n'


def area(program):
    space = {}
    exec(program, space)  # noqa: S102
    return space["area"](2)


@pytest.mark.parametrize(
    "code",
    [
        PROMPT + "    return math.pi * r * r\n",
        "def area(r):\n    return math.pi * r * r",
        "from __future__ import annotations\nimport os\ndef area(r: float):\n    return math.pi * r * r",
        "area = lambda r: math.pi * half(r) * 2 * r",
        "def half(x):\n    return x\n\ndef area(r):\n    return math.pi * half(r) * r",
        "    return math.pi * r * r",
        "return math.pi * r * r",
        "s = r * r\n    return math.pi * s",
        "s = 0\nfor _ in range(r):\n    s += r\nreturn math.pi * s",
        "for s in [r * r]:\n        s += 0\n    return math.pi * s",
        "if r:\n        s = r * r\n        return math.pi * s",
        "if r:\n    s = r * r\n    return math.pi * s",
        "  s = r * r\n  if s:\n    return math.pi * s",
        "\ts = r * r\n\tif s:\n\t\treturn math.pi * s",
        "    return math.pi * r * r\n\ndef other():\n    return 1",
    ],
)
def test_a_whole_function_or_its_body(code):
    stub = read_stub(PROMPT, "area")
    assert area(whole_programs(code, stub, "area")[0]) == pytest.approx(12.566370614359172)


def test_what_follows_a_body_at_the_margin_can_be_cut_off():
    code = "    return math.pi * r * r\n\nThis is the area of\ndef check(cand"
    first, second = whole_programs(code, read_stub(PROMPT, "area"), "area")
    with pytest.raises(SyntaxError):
        compile(first, "", "exec")
    assert area(second) == pytest.approx(12.566370614359172)


def test_stubs():
    assert read_stub(PROMPT, "area").preamble == "import math\ndef half(x):\n    return x / 2\n"
    assert read_stub("def area(r):\n    # the area\n", "area").preamble == ""
    assert read_stub("Write a function area.", "area") is None
    assert read_stub(PROMPT, "volume") is None and read_stub(None, "area") is None and read_stub(PROMPT, None) is None
    assert whole_programs("x", None, "area") == ["x"]
