import subprocess
import sys

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward, gate_order
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


@pytest.mark.parametrize("path", ["rewards/format.py", "trl.rewards.think_format_reward"])
@pytest.mark.parametrize("name", ["completions", "prompts", "completion_ids", "log_extra", "trainer_state"])
def test_refused_kwargs_that_hide_what_the_trainer_passes(path, name):
    caught = refusal(options(path, kwargs={name: 1}))
    assert caught.key == "reward.functions.it.kwargs" and "hide" in str(caught)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_refused_weight(weight):
    assert refusal(options("rewards/format.py", weight=weight)).key == "reward.functions.it.weight"


def test_refused_group():
    assert refusal(RewardOptions()).key == "reward.functions"
    assert refusal(options("rewards/format.py", weight=0.0)).key == "reward.functions"
    named = options("rewards/format.py")
    named.judge = "itt"
    assert "did you mean 'it'" in str(refusal(named))
    named.judge = "it"
    for named.pass_at in (float("nan"), float("inf"), 1e300):
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


@pytest.mark.parametrize(
    "fields, key",
    [
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": 1e300}, "timeout"),
        ({"workers": 0}, "workers"),
        ({"memory_gb": 1e300}, "memory_gb"),
        ({"memory_gb": 1e10}, "memory_gb"),
        ({"weight": 1e300}, "weight"),
        ({"memory_gb": 0.0}, "memory_gb"),
        ({"scope": "smaple"}, "scope"),
        ({"gate_on": "fail", "gate": "it"}, "gate_on"),
        ({"gate_on": "failed"}, "gate_on"),
        ({"gate": "other"}, "gate"),
        ({"gate": "it"}, "gate"),
        ({"on_error": "ignore"}, "on_error"),
        ({"clip": [1.0, 0.0]}, "clip"),
        ({"clip": [0.0]}, "clip"),
        ({"clip": [float("inf"), float("inf")]}, "clip"),
        ({"clip": [-float("inf"), -float("inf")]}, "clip"),
        ({"clip": [1e300, float("inf")]}, "clip"),
        ({"clip": [0.0, 1e300]}, "clip"),
        ({"clip": [0.0, float("nan")]}, "clip"),
        ({"max_failure_share": 0.0}, "max_failure_share"),
        ({"max_failure_share": 1.01}, "max_failure_share"),
    ],
)
def test_refused_limits(fields, key):
    assert refusal(options("rewards/format.py", **fields)).key == f"reward.functions.it.{key}"


def test_allowed_limits():
    allowed = {"timeout": 0.5, "workers": 1, "memory_gb": 0.25, "scope": "batch", "clip": [0.5, 0.5]}
    check_reward(options("rewards/format.py", **allowed, on_error="stop", max_failure_share=1.0))
    check_reward(options("rewards/format.py", clip=[-float("inf"), 1.0], timeout=86_400.0, weight=-1e6))


def gated(**gates):
    functions = {name: RewardFunctionOptions(path="rewards/format.py", gate=gate) for name, gate in gates.items()}
    return RewardOptions(functions=functions)


def test_what_the_trainer_gives_is_no_column_and_what_the_start_takes_is_known(plugin):
    given = "def one(completions, answer, exit, trainer_state, log_extra, log_metric, **kwargs):\n    return []\n"
    assert check_reward(options(plugin(given))) == {"it": ["answer"]}
    start = ONE + "\ndef _start(url, *, tries=3, **kwargs):\n    pass\n"
    check_reward(options(plugin(start), kwargs={"url": "u", "tries": 1}))
    assert "did you mean 'tries'" in str(refusal(options(plugin(start), kwargs={"trie": 1})))


def test_gates():
    caught = refusal(gated(a="b", b="c", c="a"))
    assert caught.key.endswith(".gate") and "a -> b -> c -> a" in str(caught)
    caught = refusal(gated(a=None, b="x", c="a"))
    assert caught.key == "reward.functions.b.gate" and "one of: a, c" in str(caught)
    check_reward(gated(c="b", b="a", a=None))
    assert gate_order(gated(c="b", b="a", d=None, a=None).functions) == ["a", "b", "c", "d"]


def test_refused_sum():
    whole = options("rewards/format.py")
    whole.clip = [2.0, 1.0]
    assert refusal(whole).key == "reward.clip"
    whole.clip, whole.scale = [0.0, 1.0], "normalise_then_sum"
    assert refusal(whole).key == "reward.scale" and "did you mean 'normalize_then_sum'" in str(refusal(whole))


@pytest.mark.parametrize(
    "source, word",
    [
        ("import no_such_package\n" + ONE, "plugin.py:1: it imports 'no_such_package'"),
        (
            "import os\nfrom no_such_package.inner import thing\n" + ONE,
            "plugin.py:2: it imports 'no_such_package.inner'",
        ),
    ],
)
def test_a_package_that_is_missing_is_refused_before_anything_is_loaded(plugin, source, word):
    caught = refusal(options(plugin(source)))
    assert (
        caught.key == "reward.functions.it.path"
        and word in str(caught)
        and "pip install no_such_package" in str(caught)
    )


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import no_such_package\nexcept ImportError:\n    no_such_package = None\n" + ONE,
        "if False:\n    import no_such_package\n" + ONE,
        ONE + "    import no_such_package\n",
        "import os.path, json\nfrom collections import abc\n" + ONE,
        "import helper\n" + ONE,
    ],
)
def test_an_import_that_may_not_run_or_that_is_there_passes(plugin, tmp_path, source):
    (tmp_path / "helper.py").write_text("")
    check_reward(options(plugin(source)))
