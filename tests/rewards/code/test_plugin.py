from pathlib import Path

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards import load_reward
from ruyi_rl.rewards.check import check_function, required_columns
from ruyi_rl.rewards.loading import load_function
from ruyi_rl.rewards.results import RewardError
from ruyi_rl.rewards.sandbox.cgroups import memory_cgroups

PLUGIN = "rewards/code_tests.py"
SQUARE, CUBE = "```python\ndef f(x):\n    return x * x\n```", "def f(x):\n    return x ** 3"
ASSERTS = {"asserts": ["assert f(1) == 1", "assert f(2) == 4"], "setup": ""}
CHECK = "def check(candidate):\n    assert candidate(2) == 4"


def test_rewards_reasons_and_counts(confinable):
    logged = {}
    score = load_function(PLUGIN)
    completions = [SQUARE, [{"role": "assistant", "content": CUBE}], "", SQUARE, SQUARE, CUBE]
    tests = [ASSERTS, ASSERTS, ASSERTS, None, {"inputs": ["1"], "outputs": []}, ASSERTS]
    columns = {"prompts": [""] * 6, "log_extra": logged.__setitem__}
    assert score(completions=completions, tests=tests, **columns) == [1.0, 0.0, 0.0, None, None, 0.0]
    assert logged["code_tests/reason"] == ["passed", "failed", "no_program", "no_tests", "bad_tests", "failed"]
    assert logged["code_tests/passed"][0] == logged["code_tests/total"][0] == 2
    assert score(completions=completions, tests=tests, credit="share", **columns) == [1.0, 0.5, 0.0, None, None, 0.5]
    half = {"credit": "threshold", "threshold": 0.5}
    assert score(completions=completions, tests=tests, **half, **columns) == [1.0, 1.0, 0.0, None, None, 1.0]


def test_fields_of_humaneval_and_mbpp_in_columns(confinable):
    score = load_function(PLUGIN)
    columns = {"entry_point": ["f", "g"], "code_prompt": ["def f(x):\n", "def g(x):\n"]}
    assert score(completions=["    return x * x", SQUARE], tests=[CHECK, CHECK], **columns) == [1.0, 0.0]
    columns = {"test_setup_code": ["k = 4", "k = 5"], "test_imports": [["import math"], None]}
    asserts = ["assert math.isclose(f(2), k)"]
    assert score(completions=[SQUARE, SQUARE], tests=[asserts, asserts], **columns) == [1.0, 0.0]


def test_equal_completions_are_run_once(confinable, tmp_path):
    score = load_function(PLUGIN)
    program = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n" + CUBE
    other = {"asserts": ["assert f(2) == 9"]}
    score(completions=[program] * 8, tests=[ASSERTS] * 4 + [other] * 4, sandbox="none")
    assert (tmp_path / "runs").read_text() == "xx"


def test_rows_that_differ_in_their_keys_only(confinable):
    score = load_function(PLUGIN)
    rows = [{"entry_point": "f", "calls": [{"args": [{key: 2}], "output": {(1, 2): 3}}]} for key in (1, "1")]
    program = "def f(x): return {(1, 2): 3 if 1 in x else 4}"
    assert score(completions=[program] * 2, tests=rows) == [1.0, 0.0]


def test_less_time_a_sample_than_its_program_may_take_is_refused():
    """The worker of a program that hangs would be killed: a failure, and no 0."""
    with pytest.raises(RewardError, match="5 seconds a sample are too few"), load_reward(PLUGIN, timeout=5, seconds=5):
        pass


def test_in_a_worker_of_its_own(confinable):
    with load_reward(PLUGIN, timeout=30, seconds=10) as reward:
        assert reward(completions=[SQUARE, CUBE], tests=[ASSERTS, ASSERTS]) == [1.0, 0.0]


def cgroups_of(process):
    """The sandbox's memory cgroups that a process has made."""
    own = Path("/proc/self")
    parents = memory_cgroups((own / "mountinfo").read_text(), (own / "cgroup").read_text())
    return {group for parent, _ in parents for group in parent.glob(f"ruyi-sandbox-{process}-*")}


def test_a_worker_that_is_killed_leaves_no_cgroup(confinable, tmp_path):
    """A worker is killed at its pool's end too, with all that could have removed its cgroup."""
    plugin = tmp_path / "worker.py"
    plugin.write_text(
        "import os\nfrom ruyi_rl.rewards.sandbox import Sandbox, SandboxOptions\n"
        "def process(completions, **kwargs):\n"
        "    sandbox = Sandbox(SandboxOptions()).__enter__()\n"
        "    with sandbox.open('def f(): return 1') as program:\n"
        "        assert program.call('f', []).value == 1\n"
        "    return [os.getpid() for _ in completions]\n"
    )
    with load_reward(str(plugin), timeout=30) as reward:
        (worker,) = reward(completions=["a"])
        made = cgroups_of(int(worker))
    assert not any(group.exists() for group in made)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"credit": "most"}, "credit: 'most'"),
        ({"threshold": 0}, "threshold: 0"),
        ({"language": "cobol"}, "language: 'cobol'"),
        ({"sandbox": "docker"}, "docker"),
        ({"seconds": 0}, "seconds"),
        ({"memory_mb": 1}, "memory_mb"),
    ],
)
def test_impossible_options_are_refused(kwargs, message):
    with pytest.raises(Refusal, match=message):
        load_function(PLUGIN).__globals__["_start"](**kwargs)
    with pytest.raises(Refusal, match=message):
        load_function(PLUGIN)(completions=[], tests=[], **kwargs)


def test_no_confinement_is_refused_at_the_start_and_never_worked_around(monkeypatch):
    space = load_function(PLUGIN).__globals__
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refusal, match=r"sandbox: .*bwrap.*sandbox=none"):
        space["_start"](credit="share")
    space["_start"](sandbox="none")


def test_the_early_look_knows_the_column_and_the_options():
    assert required_columns(PLUGIN, {}) == ["tests"]
    assert check_function("reward", PLUGIN, {"credit": "share", "seconds": 3, "sandbox": "none"}) == "code_tests"
    with pytest.raises(Refusal, match="second"):
        check_function("reward", PLUGIN, {"second": 3})


def test_it_names_its_formula_and_source():
    text = Path(load_function(PLUGIN).__code__.co_filename).read_text()
    assert "Formula" in text and "https://" in text
