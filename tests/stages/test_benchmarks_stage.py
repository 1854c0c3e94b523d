"""`stage=eval` over benchmarks for real: against the family's own answers, and again from its own file of them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ruyi_rl.benchmarks.options import BenchmarkOptions
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages.options import EvalOptions
from tests.forked_ranks import run_ranks

pytestmark = pytest.mark.slow

EXITS = ("small", "medium", "large")
LENGTH = 5
PLUGINS = {
    "first": """
def first(completions, letters, log_extra=None, **kwargs):
    texts = [chat[0]["content"] for chat in completions]
    log_extra("first/answer", [text[:1] for text in texts])
    return [float(text[:1] in good) for text, good in zip(texts, letters)]
""",
    "long": """
def long(completions, **kwargs):
    return [float(len(chat[0]["content"]) >= 4) for chat in completions]
""",
}


def greedy_answers(folder, prompts):
    """Exit -> the greedy answer to each prompt, by the family's own generate, one at a time."""
    import torch

    from ruyi_rl.family import Family
    from ruyi_rl.rollout.transformers import end_token_ids
    from ruyi_rl.stages.inputs import load_tokenizer

    family, tokenizer = Family.from_pretrained(folder).eval(), load_tokenizer(folder)
    ends, found = end_token_ids(family, tokenizer), {}
    for exit in EXITS:
        found[exit] = []
        for prompt in prompts:
            chat = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            with family.at_exit(exit), torch.no_grad():
                drawn = family.generate(ids, max_new_tokens=LENGTH, do_sample=False, eos_token_id=ends)
            found[exit].append(tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True))
    return found


@pytest.fixture(scope="module")
def bench(family_folder, tmp_path_factory):
    """A run's config with two benchmarks, and the family's greedy answers to each."""
    folder = tmp_path_factory.mktemp("benchmarks")
    prompts = {"first": [f"{chr(97 + n)}{n}=" for n in range(12)], "long": [f"{n}?" for n in range(9)]}
    said = {name: greedy_answers(family_folder, each) for name, each in prompts.items()}
    benchmarks = {}
    for name, plugin in PLUGINS.items():
        (folder / f"{name}.py").write_text(plugin)
        # The first letters of half the answers, whoever gave them.
        letters = "".join(said[name][EXITS[n % 3]][n][:1] for n in range(0, len(prompts[name]), 2))
        rows = [{"text": prompt, "letters": letters} for prompt in prompts[name]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        benchmarks[name] = BenchmarkOptions(
            DataOptions(name=name, path=str(folder / f"{name}.jsonl"), fields={"prompt": "text"}, test=None),
            RewardOptions(functions={name: RewardFunctionOptions(path=str(folder / f"{name}.py"))}),
            samples=4 if name == "first" else 2,
            max_new_tokens=LENGTH,
        )
    config = RunConfig(
        name="x",
        run_dir=str(folder / "x"),
        stage=StageOptions("eval"),
        start_from=str(family_folder),
        rollout=RolloutOptions(backend="transformers"),
        eval=EvalOptions(benchmarks=benchmarks, resamples=200),
    )
    run_stages(config, [])
    return config, said


@pytest.fixture
def again(bench, tmp_path):
    """The same config with a folder of its own, which holds what was measured."""
    config, _ = bench
    shutil.copytree(config.run_dir, tmp_path / "x")
    return replace(config, run_dir=str(tmp_path / "x"))


def found(config):
    return StageFolder(Path(config.run_dir) / "eval").summary()["benchmarks"]


def shares(result):
    """Exit -> metric -> value, of one benchmark."""
    return {
        exit: {metric: each["value"] for metric, each in values.items() if isinstance(each, dict)}
        for exit, values in result["exits"].items()
    }


def test_greedy_answers_are_the_familys_own(bench):
    config, said = bench
    letters = json.loads(Path(config.eval.benchmarks["first"].data.path).read_text().splitlines()[0])["letters"]
    results = found(config)
    values = shares(results["first"])
    right = {exit: [answer[:1] in letters for answer in said["first"][exit]] for exit in EXITS}
    assert {exit: each["greedy"] for exit, each in values.items()} == pytest.approx(
        {exit: sum(each) / 12 for exit, each in right.items()}
    )
    assert {exit: each["greedy"] for exit, each in shares(results["long"]).items()} == pytest.approx(
        {exit: sum(len(answer) >= 4 for answer in said["long"][exit]) / 9 for exit in EXITS}
    )
    assert list(values["small"]) == ["greedy", "pass@1", "pass@2", "pass@4", "maj@4"]
    assert list(shares(results["long"])["small"]) == ["greedy", "pass@1", "pass@2"], "its judge tells no answers"
    assert len({tuple(each) for each in right.values()}) > 1, "else a wrong exit would pass"
    gaps = {
        tuple(each["exits"]): each["value"] for each in results["first"]["differences"] if each["metric"] == "greedy"
    }
    assert gaps["large", "small"] == pytest.approx((sum(right["large"]) - sum(right["small"])) / 12)
    routing = results["first"]["routing"]
    assert routing["oracle"]["accuracy"]["value"] == pytest.approx(sum(map(any, zip(*right.values()))) / 12)
    assert routing["confidence"]["problems"] == {"chosen_on": 6, "reported_on": 6}
    folder = Path(config.run_dir) / "eval"
    assert json.loads((folder / "first" / "routing.json").read_text()) == routing
    assert (folder / "first" / "routing.png").stat().st_size > 5000


def test_all_completions_are_written_and_score_the_same_when_they_are_given(bench, tmp_path):
    config, said = bench
    file = Path(config.run_dir) / "eval" / "completions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 3 * (12 * 5 + 9 * 3)
    greedy = [line["completion"] for line in lines if (line["exit"], line["sample"]) == ("medium", "greedy")]
    assert greedy == said["first"]["medium"] + said["long"]["medium"]
    (tmp_path / "one.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["benchmark"] == "first")
    )
    one = {"first": config.eval.benchmarks["first"]}
    options = replace(config.eval, benchmarks=one, completions=str(tmp_path / "one.jsonl"))
    run_stages(replace(config, run_dir=str(tmp_path / "y"), eval=options), [])
    result = found(replace(config, run_dir=str(tmp_path / "y")))["first"]
    assert shares(result) == shares(found(config)["first"])
    assert result["differences"] == found(config)["first"]["differences"] and result["temperature"] is None


def test_what_is_asked_besides_is_measured_and_the_rest_kept(again, capsys):
    before = found(again)["first"]
    other = replace(again.eval.benchmarks["long"], samples=3, problems=4)
    options = replace(again.eval, benchmarks={"first": again.eval.benchmarks["first"], "long": other})
    run_stages(replace(again, eval=options), [])
    shown = capsys.readouterr().out
    assert "long: 4 problems" in shown and "first: 12 problems" not in shown
    # The wall time tells what was kept from what happens to be equal.
    assert found(again)["first"] == before and found(again)["long"]["samples"] == 3
    run_stages(again, [])
    shown = capsys.readouterr().out
    assert "long: 9 problems" in shown and "first: 12 problems" not in shown, "its files are of the last measurement"
    other = Path(again.run_dir) / "family"
    shutil.copytree(again.start_from, other)
    os.utime(other / "model.safetensors", (1, 1))
    with pytest.raises(Refusal, match=r"was made with another config: .*start_from"):
        run_stages(replace(again, start_from=str(other)), [])


def test_one_benchmark_leaves_what_the_other_came_to(again, capsys):
    before = found(again)
    one = replace(again.eval, benchmarks={"first": again.eval.benchmarks["first"]})
    run_stages(replace(again, eval=one), [])
    assert found(again) == before and "long · 9 problems" in capsys.readouterr().out


def test_an_interrupted_stage_goes_on_with_the_next_benchmark(bench, tmp_path, monkeypatch):
    config, _ = bench
    config = replace(config, run_dir=str(tmp_path / "x"))
    from ruyi_rl.execution import StageContext
    from ruyi_rl.failure import Interrupted

    keep = StageContext.keep

    def interrupted(context, key, value):
        keep(context, key, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(StageContext, "keep", interrupted)
    with pytest.raises(Interrupted, match="benchmark/first/"):
        run_stages(config, [])
    monkeypatch.undo()
    measured = []
    monkeypatch.setattr(
        "ruyi_rl.stages.benchmarks.ScoredJudge.settle", lambda judge, settle=None: measured.append(judge.occasion)
    )
    run_stages(config, [])
    assert set(measured) == {"long"}
    lines = (Path(config.run_dir) / "eval" / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 3 * (12 * 5 + 9 * 3)


def test_what_only_the_stage_can_find_is_refused(again, tmp_path):
    def asked(**changes):
        run_stages(replace(again, run_dir=str(tmp_path / "y"), eval=replace(again.eval, **changes)), [])

    (tmp_path / "given.jsonl").write_text('{"benchmark": "first", "problem": 0, "completion": "a", "exit": "me"}\n')
    one = {"first": again.eval.benchmarks["first"]}
    with pytest.raises(Refusal, match="2 is more than the 1 given completions of a problem of first"):
        asked(benchmarks={"first": replace(one["first"], pass_at=[2])}, completions=str(tmp_path / "given.jsonl"))
    with pytest.raises(Refusal, match=r"eval\.exits: 'you' has no given completions"):
        asked(benchmarks=one, completions=str(tmp_path / "given.jsonl"), exits=["you"])
    (tmp_path / "given.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(Refusal, match="line 1 has no completion, but text"):
        asked(benchmarks=one, completions=str(tmp_path / "given.jsonl"))
    short = replace(one["first"].data, max_prompt_tokens=1)
    with pytest.raises(Refusal, match=r"eval\.benchmarks\.first\.data\.max_prompt_tokens: 1 leaves none"):
        asked(benchmarks={"first": replace(one["first"], data=short)})


def test_too_long_prompts_are_left_out_and_the_others_keep_their_numbers(again, tmp_path, capsys):
    one = again.eval.benchmarks["first"]
    rows = Path(one.data.path).read_text().splitlines()
    long = json.dumps({**json.loads(rows[0]), "text": "x" * 60})
    (tmp_path / "rows.jsonl").write_text("\n".join([rows[0], long, *rows[1:3]]) + "\n")
    # As in the family's chat template: a few tokens around a byte a token.
    data = replace(one.data, path=str(tmp_path / "rows.jsonl"), max_prompt_tokens=50)
    asked = replace(again.eval, benchmarks={"first": replace(one, data=data)})
    run_stages(replace(again, run_dir=str(tmp_path / "y"), eval=asked), [])
    result = found(replace(again, run_dir=str(tmp_path / "y")))["first"]
    assert (result["problems"], result["left_out"]) == (3, 1)
    assert "first: 1 of 4 problems are left out, their prompts are longer than" in capsys.readouterr().out
    lines = (tmp_path / "y" / "eval" / "completions.jsonl").read_text().splitlines()
    assert {json.loads(line)["problem"] for line in lines} == {0, 2, 3}


def run_config(config: RunConfig) -> None:
    run_stages(config, [])


def test_two_ranks_find_what_one_finds(bench, tmp_path):
    config, _ = bench
    two = replace(config, run_dir=str(tmp_path / "x"))
    run_ranks("tests.stages.test_benchmarks_stage:run_config", two, log=tmp_path / "log")
    for name, result in found(two).items():
        alone = found(config)[name]
        for each in (*result["exits"].values(), *alone["exits"].values()):
            each.pop("seconds")
        assert result == alone
    lines, own = ((Path(each.run_dir) / "eval" / "completions.jsonl").read_text() for each in (two, config))
    assert lines == own
