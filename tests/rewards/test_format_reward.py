import importlib.util
from pathlib import Path

import pytest

from ruyi_rl.rewards.loading import load_function

score = load_function(str(Path(__file__).parents[2] / "rewards" / "format.py"))
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


def test_unknown_mode():
    with pytest.raises(ValueError, match="'tagz'"):
        score(completions=[GOOD], mode="tagz")


@pytest.mark.parametrize("name", ["math_answer", "format"])
def test_shipped_plugin_names_its_formula_and_source(name):
    file = Path(__file__).parents[2] / "rewards" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "Formula" in module.__doc__ and "https://" in module.__doc__
