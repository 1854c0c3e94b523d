import subprocess
import sys

import pytest
from trl.rewards import think_format_reward

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.loading import is_async, load_function, start_hook

PLUGIN = """
STARTED = []

def _start(**kwargs):
    STARTED.append(kwargs)

def length(completions, scale=1.0, **kwargs):
    return [scale * len(text) for text in completions]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plugin into the user's own folder; gives its path relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    def write(source):
        (tmp_path / "mine" / "plugin.py").write_text(source)
        return "mine/plugin.py"

    return write


def test_file_with_its_one_public_function(plugin):
    function = load_function(plugin(PLUGIN))
    assert function(completions=["xx", "xxx"], scale=2.0) == [4.0, 6.0]


def test_function_of_a_file_with_several(plugin):
    path = plugin(PLUGIN + "\ndef other(completions, **kwargs):\n    return [7.0 for _ in completions]\n")
    assert load_function(f"{path}:other")(completions=["x"]) == [7.0]
    with pytest.raises(Refusal, match="2 public functions"):
        load_function(path)


def test_dotted_name():
    assert load_function("trl.rewards.think_format_reward") is think_format_reward
    assert start_hook("trl.rewards.think_format_reward") is None


def test_start_hook_belongs_to_the_function(plugin):
    path = plugin(PLUGIN)
    function = load_function(path)
    start_hook(path)(level=1)
    assert function.__globals__["STARTED"] == [{"level": 1}]


def test_a_plugin_without_start_hook(plugin):
    assert start_hook(plugin("def one(completions, **kwargs):\n    return []\n")) is None


def test_async(plugin):
    class Called:
        async def __call__(self, completions, **kwargs):
            return []

    assert is_async(load_function(plugin("async def slow(completions, **kwargs):\n    return []\n")))
    assert is_async(Called()) and not is_async(think_format_reward)


def test_shipped_file_from_any_folder_and_a_local_one_hides_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_function("rewards/format.py")(completions=["<think>"], mode="tags") == [0.25]
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "format.py").write_text("def mine(completions, **kwargs):\n    return [9.0]\n")
    assert load_function("rewards/format.py")(completions=["<think>"]) == [9.0]


def test_what_the_import_raises_is_raised_again_the_next_time(plugin):
    path = plugin("import no_such_module\n\ndef one(completions, **kwargs):\n    return []\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="no_such_module"):
            load_function(path)


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, ruyi_rl.rewards, ruyi_rl.rewards.loading, ruyi_rl.rewards.isolated\n"
        "print([name for name in ('torch', 'sympy', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
