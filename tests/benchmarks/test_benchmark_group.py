"""`benchmark=` from the command line: composed, checked, refused. Nothing is loaded from the hub."""

import json
from dataclasses import asdict, replace

import pytest

from ruyi_rl.benchmarks.asked import asked_benchmarks
from ruyi_rl.benchmarks.options import BenchmarkOptions
from ruyi_rl.benchmarks.split import held_out_split, whole_split
from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.data.files import locate, read_records
from ruyi_rl.data.options import DataOptions
from ruyi_rl.pipeline import deciding
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.options import EvalOptions
from ruyi_rl.validation import validate
from ruyi_rl.validation.benchmarks import check_benchmarks


def configured(*overrides):
    return to_run_config(compose_config(["stage=eval", "name=x", *overrides]))


@pytest.fixture(scope="module")
def gsm8k():
    return configured("benchmark=gsm8k", "evaluation.samples=4")


def refusal(config, benchmark=None, **changes):
    """What is said of a config with other options of `eval`, or of a benchmark."""
    if benchmark is not None:
        options = replace(config.eval.benchmarks[benchmark], **changes)
        changes = {"benchmarks": {**config.eval.benchmarks, benchmark: options}}
    with pytest.raises(Refusal) as refused:
        check_benchmarks(replace(config, eval=replace(config.eval, **changes)))
    return str(refused.value)


def test_every_benchmark_composes_and_is_valid():
    names = ConfigSource().choices()["benchmark"]
    config = configured(f"benchmark=[{','.join(names)}]")
    check_benchmarks(config)
    asked = asked_benchmarks(config)
    assert [each.name for each in asked] == [each.options.data.name for each in asked] == names
    for each in asked:
        assert not each.own and each.options.problems is None and each.options.data.max_prompt_tokens >= 2048
        split = whole_split(each.options.data)
        assert (split.test, split.holdout, split.limit) == (None, 0, None)


def test_several_stand_together_and_each_value_can_be_set():
    config = configured(
        "benchmark=[gsm8k,humaneval,gsm8k]",
        "eval.benchmarks.gsm8k.data.path=elsewhere",
        "eval.benchmarks.humaneval.samples=20",
        "eval.benchmarks.humaneval.reward.functions.code_tests.timeout=5",
        "evaluation.samples=3",
        "eval.pass_at=[1,3]",
    )
    gsm8k, humaneval = asked_benchmarks(config)
    assert (gsm8k.name, gsm8k.options.data.path, gsm8k.options.samples) == ("gsm8k", "elsewhere", 3)
    assert (humaneval.options.samples, humaneval.options.pass_at) == (20, [1, 3])
    assert humaneval.options.reward.functions["code_tests"].timeout == 5
    assert humaneval.options.max_new_tokens == config.grpo.trainer["max_completion_length"]


def test_without_a_benchmark_it_is_the_runs_own_rows():
    (own,) = asked_benchmarks(configured("evaluation.problems=5"))
    assert own.own and own.name == "arithmetic" and own.options.problems == 5
    assert asked_benchmarks(configured("evaluation.problems=0")) == []


def test_what_is_measured_does_not_rename_the_run_but_decides_the_stage():
    plain, asked = (
        to_run_config(compose_config(["stage=eval", *more])) for more in ([], ["benchmark=gsm8k", "eval.exits=[small]"])
    )
    assert plain.name == asked.name
    before, after = (deciding(asdict(each), "eval") for each in (plain, asked))
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed and all(key.startswith("eval.") for key in changed)
    assert deciding(asdict(plain), "grpo") == deciding(asdict(asked), "grpo")


def test_what_is_unknown_is_refused_with_the_nearest_name():
    with pytest.raises(Refusal, match=r"benchmark: 'gsm8kk' is no choice of this group .did you mean 'gsm8k'"):
        configured("benchmark=[humaneval,gsm8kk]")
    with pytest.raises(Refusal, match=r"eval\.benchmarks\.gsm8k\.sample: no such key .did you mean"):
        configured("benchmark=gsm8k", "eval.benchmarks.gsm8k.sample=3")


def test_what_is_impossible_is_refused_by_its_key(gsm8k, tmp_path):
    block = "eval.benchmarks.gsm8k"
    assert refusal(gsm8k, pass_at=[1, 8]).startswith("eval.pass_at: 8 is more than the 4 samples of gsm8k")
    own = replace(gsm8k, eval=EvalOptions())
    assert refusal(own, pass_at=[8]).endswith("or a larger evaluation.samples)")
    assert refusal(gsm8k, pass_at=[]).startswith("eval.pass_at: []")
    for name in ("problems", "samples", "max_new_tokens", "temperature"):
        assert refusal(gsm8k, "gsm8k", **{name: 0}).startswith(f"{block}.{name}: 0")
    data = gsm8k.eval.benchmarks["gsm8k"].data
    missing = refusal(gsm8k, "gsm8k", data=replace(data, path=str(tmp_path / "none.jsonl")))
    assert missing.startswith(f"{block}.data.path:") and "does not exist" in missing
    empty = refusal(gsm8k, "gsm8k", data=replace(data, path=str(tmp_path)))
    assert empty.startswith(f"{block}.data.test or .train:")
    judge = refusal(gsm8k, "gsm8k", reward=replace(gsm8k.eval.benchmarks["gsm8k"].reward, judge="math"))
    assert judge.startswith(f"{block}.reward.judge: no reward function 'math'")
    unchosen = refusal(gsm8k, benchmarks={"gsm8k": BenchmarkOptions(samples=4)})
    assert unchosen.startswith(f"{block}: this benchmark was not chosen")
    assert refusal(own, completions="none.jsonl").startswith("eval.completions: no file none.jsonl")
    assert refusal(own, resamples=10).startswith("eval.resamples: 10")


def test_given_completions_may_be_of_others_than_the_familys_exits(tmp_path):
    (tmp_path / "given.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    given = [f"run_dir={tmp_path / 'run'}", f"eval.completions={tmp_path / 'given.jsonl'}", "rollout=transformers"]
    validate(configured(*given, "eval.exits=[somebody]"))
    with pytest.raises(Refusal, match=r"eval\.exits: 'somebody' is none of the exits"):
        validate(configured(given[0], given[2], "eval.exits=[somebody]"))


def test_a_benchmark_is_the_whole_split(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {n}"}) + "\n" for n in range(5)))

    def first(options):
        return next(iter(read_records(locate(options).train[0])))[1]["prompt"]

    folder, file = DataOptions(path=str(tmp_path), limit=2), DataOptions(path=str(tmp_path / "train.jsonl"))
    assert first(whole_split(folder)) == "test 0" and locate(whole_split(folder)).test == ()
    assert first(whole_split(file)) == "train 0", "a neighbour of a single file may be anything"
    file.test = "test.jsonl"
    assert first(whole_split(file)) == "test 0"
    folder.test = None
    assert first(whole_split(folder)) == "train 0"
    folder.test = "held_out"
    assert first(held_out_split(folder)) == "train 0"
