import os
import subprocess
import sys
from pathlib import Path

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards import load_reward
from ruyi_rl.rewards.results import RewardError

HOSTILE = """
import os, time

def one(completions, **kwargs):
    for text in completions:
        if text == "hang":
            time.sleep(60)
        if text == "die":
            os._exit(3)
        if text == "raise":
            raise ValueError("bad sample")
    return [float("nan") if text == "nan" else float(os.getpid()) for text in completions]
"""


@pytest.fixture
def hostile(tmp_path):
    file = tmp_path / "hostile.py"
    file.write_text(HOSTILE)
    return str(file)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_of_strings_and_chats():
    with load_reward("rewards/math_answer.py", timeout=20) as reward:
        chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "#### 4"}]
        completions = [r"\boxed{\sqrt{8}}", chat, "5", "x"]
        assert reward(completions=completions, answer=[r"2\sqrt{2}", "4", "6", None]) == [1.0, 1.0, 0.0, None]
        assert reward(completions=[], answer=[]) == []


def test_kwargs_and_async(tmp_path):
    file = tmp_path / "later.py"
    source = "async def later(completions, plus=0, **kwargs):\n    return [plus + len(text) for text in completions]\n"
    file.write_text(source)
    with load_reward(str(file), plus=2) as reward:
        assert reward(completions=["a", "bb"]) == [3.0, 4.0]


def test_failing_samples_alone_get_none_and_are_counted(hostile):
    with load_reward(hostile, timeout=1) as reward:
        rewards = reward(completions=["a", "hang", "b", "c", "die", "nan", "raise", "d"])
        assert [value is None for value in rewards] == [False, True, False, False, True, True, True, False]
        assert reward.counts.failures == {"timeout": 1, "crash": 1, "nan": 1, "exception": 1}
        assert (reward.counts.scored, reward.counts.abstained) == (4, 0)
        assert [(failure.index, failure.kind) for failure in reward.failures] == [
            (1, "timeout"), (4, "crash"), (5, "nan"), (6, "exception"),
        ]  # fmt: skip
        assert (reward.failures[3].message, reward.failures[3].place) == ("ValueError: bad sample", "hostile.py:11")
        assert None not in reward(completions=["a", "b"])
        assert reward.failures == [] and reward.counts.scored == 6
        assert reward.__name__ == "hostile"


def test_one_worker_is_reused_and_gone_at_the_end(hostile):
    with load_reward(hostile, timeout=5) as reward:
        pids = reward(completions=["a"]) + reward(completions=["b"])
        assert pids[0] == pids[1] != os.getpid()
        assert alive(int(pids[0]))
    assert not alive(int(pids[0]))


def test_refusals(tmp_path):
    with pytest.raises(Refusal, match="no file"):
        load_reward(str(tmp_path / "absent.py"))
    with pytest.raises(Refusal, match="above 0"):
        load_reward("rewards/format.py", timeout=0)
    (tmp_path / "bad.py").write_text("import no_such\n\ndef one(completions, **kwargs):\n    return []\n")
    with pytest.raises(RewardError, match="no_such"):
        load_reward(str(tmp_path / "bad.py"))


def test_from_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from ruyi_rl.rewards import load_reward\n"
        "with load_reward('rewards/format.py', mode='tags') as reward:\n"
        "    print(reward(completions=['<think>']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, script]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert (found.stdout, found.returncode) == ("[0.25]\n", 0), found.stderr
