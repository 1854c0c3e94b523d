import asyncio
import pickle
import subprocess
import sys

import pytest
from trl.rewards import think_format_reward
from trl.trainer.utils import get_callable_name, is_async_callable

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.loading import load_reward_functions
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.results import RewardError

PLUGIN = """
def length(completions, scale=1.0, **kwargs):
    return [scale * len(text) for text in completions]

def _helper():
    return 1
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a plugin into the user's own folder and load it by a path relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    def write(source, path="mine/plugin.py", **options):
        (tmp_path / "mine" / "plugin.py").write_text(source)
        functions = {"my_reward": RewardFunctionOptions(path=path, **options)}
        return load_reward_functions(RewardOptions(functions=functions))[0]

    return write


def load_one(path, name="it", **options):
    return load_reward_functions(RewardOptions(functions={name: RewardFunctionOptions(path=path, **options)}))[0]


def test_file_with_name_weight_and_kwargs(load):
    reward = load(PLUGIN, weight=0.5, kwargs={"scale": 2.0})
    assert (reward.name, reward.weight, get_callable_name(reward.function)) == ("my_reward", 0.5, "my_reward")
    assert reward.function(prompts=["a", "b"], completions=["xx", "xxx"], completion_ids=[[1], [2]]) == [4.0, 6.0]
    assert not is_async_callable(reward.function)


def test_function_of_a_file_with_several(load):
    source = PLUGIN + "\ndef other(completions, **kwargs):\n    return [7.0 for _ in completions]\n"
    assert load(source, path="mine/plugin.py:other").function(completions=["x"]) == [7.0]


def test_dotted_trl_reward_equals_trl():
    completions = [[{"role": "assistant", "content": text}] for text in ("<think>a</think>\nb", "a", "</think>")]
    loaded = load_one("trl.rewards.think_format_reward")
    assert loaded.function(completions=completions, prompts=["p"] * 3) == think_format_reward(completions)
    assert get_callable_name(loaded.function) == "it"


def test_async_stays_async(load):
    source = "async def slow(completions, **kwargs):\n    return [float(len(text)) for text in completions]\n"
    reward = load(source)
    assert is_async_callable(reward.function)
    assert asyncio.run(reward.function(completions=["ab"], prompts=["p"])) == [2.0]


def test_picklable_with_name_and_kwargs(load):
    function = pickle.loads(pickle.dumps(load(PLUGIN, kwargs={"scale": 3.0}).function))
    assert function(completions=["x"]) == [3.0]
    assert get_callable_name(function) == "my_reward"


def test_shipped_file_from_any_folder_and_a_local_one_hides_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_one("rewards/math_answer.py").function(completions=[r"\boxed{5}"], answer=["5"]) == [1.0]
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "math_answer.py").write_text("def mine(completions, **kwargs):\n    return [9.0]\n")
    assert load_one("rewards/math_answer.py").function(completions=["x"], answer=["5"]) == [9.0]


def test_order_and_weights_of_several():
    functions = {
        "second": RewardFunctionOptions(path="rewards/format.py", weight=0.2),
        "first": RewardFunctionOptions(path="rewards/math_answer.py"),
    }
    loaded = load_reward_functions(RewardOptions(functions=functions))
    assert [(reward.name, reward.weight) for reward in loaded] == [("second", 0.2), ("first", 1.0)]


def test_exception_names_file_and_line(load):
    reward = load("def broken(completions, **kwargs):\n    value = 1\n    return [value / 0]\n")
    with pytest.raises(RewardError, match=r"my_reward: .*mine/plugin\.py:3: ZeroDivisionError"):
        reward.function(completions=["x"])


def test_import_failure_is_refused_with_its_line(load):
    with pytest.raises(Refusal, match=r"no_such_module.*plugin\.py:1"):
        load("import no_such_module\n\ndef one(completions, **kwargs):\n    return []\n")


@pytest.mark.parametrize("returned", ["[1.0]", "[1.0, 2.0, 3.0]", "(1.0 for _ in completions)", "'ab'", "3.0", "None"])
def test_wrong_shape(load, returned):
    reward = load(f"def one(completions, **kwargs):\n    return {returned}\n")
    with pytest.raises(RewardError, match="my_reward returned"):
        reward.function(completions=["x", "y"])


def test_values_that_are_no_finite_numbers_become_none_and_are_counted(load):
    values = "[1, None, float('nan'), float('-inf'), 'high', True, [1.0]]"
    reward = load(f"def one(completions, **kwargs):\n    return {values}\n")
    assert reward.function(completions=["x"] * 7) == [1.0, None, None, None, None, 1.0, None]
    counts = reward.function.counts
    assert (counts.scored, counts.abstained) == (2, 1)
    assert counts.failures == {"nan": 1, "infinite": 1, "not_a_number": 2}


def test_numpy_and_torch_results(load):
    source = "import numpy\n\ndef one(completions, **kwargs):\n    return numpy.array([0.5, numpy.nan])\n"
    assert load(source).function(completions=["x", "y"]) == [0.5, None]


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, ruyi_rl.rewards, ruyi_rl.rewards.loading\n"
        "print([name for name in ('torch', 'sympy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
