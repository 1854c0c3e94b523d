import subprocess
import sys

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions

ONE = "def one(completions, answer, level=1, **kwargs):\n    return []\n"


def options(path, **fields):
    return RewardOptions(functions={"it": RewardFunctionOptions(path=str(path), **fields)})


@pytest.fixture
def plugin(tmp_path):
    def write(source):
        file = tmp_path / "plugin.py"
        file.write_text(source)
        return file

    return write


def refusal(options):
    with pytest.raises(Refusal) as caught:
        check_reward(options)
    return caught.value


def test_good_ones_and_their_columns(plugin):
    assert check_reward(options("rewards/math_answer.py")) == {"it": ["answer"]}
    assert check_reward(options("rewards/format.py", kwargs={"mode": "tags"})) == {"it": []}
    assert check_reward(options("trl.rewards.think_format_reward")) == {"it": []}
    assert check_reward(options("trl.rewards.accuracy_rewards.accuracy_reward")) == {"it": []}
    assert check_reward(options(plugin(ONE))) == {"it": ["answer"]}
    assert check_reward(options(plugin(ONE), kwargs={"answer": "5"})) == {"it": []}
    assert check_reward(options(f"{plugin(ONE)}:one")) == {"it": ["answer"]}


@pytest.mark.parametrize(
    "path, words",
    [
        ("rewards/math_answers.py", "did you mean 'rewards/math_answer.py'"),
        ("math_answer", "did you mean 'rewards/math_answer.py'"),
        ("", "none given"),
        ("rewards/math_answer.py:math_answr", "did you mean 'math_answer'"),
        ("no_such_package.reward", "no package 'no_such_package'"),
        ("trl.rewards.think_fromat_reward", "did you mean 'think_format_reward'"),
        ("trl.reward.think_format_reward", "did you mean 'rewards'"),
        ("not a name", "neither"),
    ],
)
def test_refused_path(path, words):
    caught = refusal(options(path))
    assert caught.key == "reward.functions.it.path"
    assert words in str(caught)


@pytest.mark.parametrize(
    "source, words",
    [
        ("def one(:\n", "plugin.py:1: not Python"),
        ("x = 1\n", "no public function"),
        ("def _one(completions, **kwargs): ...\n", "no public function"),
        (ONE + "def two(completions, **kwargs): ...\n", "2 public functions: one, two"),
        ("def one(completions):\n    return []\n", "takes no **kwargs"),
        ("def one(completions, /, **kwargs):\n    return []\n", "by position only"),
    ],
)
def test_refused_file(plugin, source, words):
    caught = refusal(options(plugin(source)))
    assert caught.key == "reward.functions.it.path"
    assert words in str(caught)


def test_refused_kwargs(plugin):
    caught = refusal(options(plugin(ONE), kwargs={"levle": 2}))
    assert caught.key == "reward.functions.it.kwargs"
    assert "did you mean 'level'" in str(caught)
    reads = "def one(completions, **kwargs):\n    return [kwargs['levle']]\n"
    check_reward(options(plugin(reads), kwargs={"levle": 2}))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_refused_weight(weight):
    assert refusal(options("rewards/format.py", weight=weight)).key == "reward.functions.it.weight"


def test_refused_group():
    assert refusal(RewardOptions()).key == "reward.functions"
    assert refusal(options("rewards/format.py", weight=0.0)).key == "reward.functions"
    named = options("rewards/format.py")
    named.judge = "itt"
    assert "did you mean 'it'" in str(refusal(named))
    named.judge, named.pass_at = "it", float("nan")
    assert refusal(named).key == "reward.pass_at"


def test_plugins_are_not_imported(plugin):
    file = plugin("raise SystemExit(3)\n" + ONE)
    code = (
        "import sys\nfrom ruyi_rl.rewards.check import check_reward\n"
        "from ruyi_rl.rewards.options import RewardFunctionOptions as F, RewardOptions as R\n"
        f"check_reward(R(functions=dict(a=F(path={str(file)!r}), b=F(path='trl.rewards.think_format_reward'))))\n"
        "print([name for name in ('torch', 'trl', 'sympy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
