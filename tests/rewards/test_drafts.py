"""New rewards from templates: the names that they may bear, and what is written."""

import ast

import pytest
import yaml

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.drafts import KINDS, PLACEHOLDER, check_name, draft
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_a_plugin_its_config_and_its_test(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = draft("short", kind)
    assert list(files) == ["rewards/short.py", "conf/reward/short.yaml", "tests/test_short_reward.py"]
    assert not any(PLACEHOLDER in text for text in files.values())
    for path in ("rewards/short.py", "tests/test_short_reward.py"):
        ast.parse(files[path])
    config = yaml.safe_load(files["conf/reward/short.yaml"])
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "short.py").write_text(files["rewards/short.py"], encoding="utf-8")
    functions = {name: RewardFunctionOptions(**options) for name, options in config.pop("functions").items()}
    columns = check_reward(RewardOptions(functions=functions, **config))
    assert columns == {"short": [] if kind == "group" else ["answer"]}
    assert functions["short"].scope == ("group" if kind == "group" else "sample")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my-reward", ("no name for a Python function", "name=my_reward")),
        ("../x", ("no name", "name=x")),
        ("9a", ("no name", "name=my_9a")),
        ("_x", ("no name", "name=x")),
        ("", ("no name", "name=mine")),
        ("答案", ("no name", "name=mine")),
        ("class", ("no name", "name=my_class")),
        ("match", ("no name", "name=my_match")),
        ("format", ("there already", "name=my_format")),
        ("sum", ("Python's own sum", "name=my_sum")),
        ("answer", ("something else", "name=my_answer")),
        ("completion_text", ("something else", "name=my_completion_text")),
        ("on", ("YAML", "name=my_on")),
        ("nan", ("YAML", "name=my_nan")),
        ("x" * 41, ("41 characters", "40")),
    ],
)
def test_names_that_cannot_be_are_refused_with_one_that_can(name, words):
    with pytest.raises(Refusal) as refusal:
        check_name(name, "plain", {"format", "math"})
    assert refusal.value.key == "name" and all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("kind", KINDS)
def test_good_names_pass(kind):
    for name in ("mine", "my_reward_2", "Mine", "x" * 40):
        check_name(name, kind, {"format"})
