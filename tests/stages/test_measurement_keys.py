"""What eval keeps its measurements under: another family, or another file, is another measurement."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ruyi_rl.benchmarks.asked import asked_benchmarks
from ruyi_rl.benchmarks.files import evaluation_files
from ruyi_rl.benchmarks.options import BenchmarkOptions
from ruyi_rl.config import RunConfig
from ruyi_rl.data.options import DataOptions
from ruyi_rl.harness.options import HarnessOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.stages import benchmarks, harness
from ruyi_rl.stages.options import EvalOptions
from ruyi_rl.stages.rollouts import LIMITS, model_length


@pytest.fixture
def config(tmp_path):
    for name in ("rows.jsonl", "given.jsonl", "judge.py", "tasks/task.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    data = DataOptions(name="mine", path=str(tmp_path / "rows.jsonl"), test=None)
    reward = RewardOptions(functions={"judge": RewardFunctionOptions(path=str(tmp_path / "judge.py"))})
    tasks = HarnessOptions(tasks=["own"], include_path=str(tmp_path / "tasks"))
    options = EvalOptions(benchmarks={"mine": BenchmarkOptions(data, reward)}, harness=tasks)
    options.completions = str(tmp_path / "given.jsonl")
    return RunConfig(eval=options)


def context(config, family="a"):
    return SimpleNamespace(config=config, manifest=SimpleNamespace(input_hash=family, progress={}))


def benchmark_key(config, family="a"):
    (asked,) = asked_benchmarks(config)
    return benchmarks._key(context(config, family), asked, None)


def test_every_file_that_is_read_decides(config, tmp_path):
    keys = {benchmark_key(config): None, benchmark_key(config, "b"): None}
    assert len(keys) == 2
    whole = {evaluation_files(config)}
    for name in ("rows.jsonl", "judge.py", "given.jsonl"):
        (tmp_path / name).write_text("2\n")
        keys[benchmark_key(config)] = None
        whole.add(evaluation_files(config))
    (tmp_path / "tasks" / "task.yaml").write_text("2\n")
    whole.add(evaluation_files(config))
    assert len(keys) == 5 and len(whole) == 5
    (tmp_path / "rows.jsonl").unlink()
    assert evaluation_files(config) not in whole, "the stage itself says what is not there"


def test_the_harness_is_asked_anew_for_another_family(config):
    keys = {harness._key(context(config, family), "small", files) for family in "ab" for files in "xy"}
    assert len(keys) == 4
    config.eval.harness.batch_size = 3
    assert harness._key(context(config), "small", "x") in keys


def test_what_was_measured_besides_stays_where_it_is_of_this_family(config):
    made = {name: {"result": {}, "scores": {}, "measurement": "m"} for name in ("mine", "other", "old")}
    made["mine"] |= {"family": "a"}
    made["other"] |= {"family": "a", "own": True}
    made["old"] |= {"family": "b"}
    there = context(config)
    there.manifest.progress = json.loads(json.dumps({f"benchmark/{name}/feed": each for name, each in made.items()}))
    found = benchmarks.measured_before(there, asked_benchmarks(config))
    assert list(found) == ["other"] and found["other"].own


def test_too_long_completions_name_the_benchmarks_own_keys(config):
    (asked,) = asked_benchmarks(config)
    with pytest.raises(Refusal, match=r"data\.max_prompt_tokens: .*or evaluation\.max_new_tokens"):
        model_length(None, 10, 8, 8, LIMITS)
    with pytest.raises(
        Refusal, match=r"^eval\.benchmarks\.mine\.data.*lower .* or eval\.benchmarks\.mine\.max_new_tok"
    ):
        model_length(None, 10, 8, 8, benchmarks.length_keys(asked))
    assert benchmarks.length_keys(replace(asked, own=True)) == LIMITS
