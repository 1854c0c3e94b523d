"""`eval.harness` for real: the harness's figures against the family's own log-likelihoods and answers."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.harness.options import HarnessOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages.options import EvalOptions
from ruyi_rl.training.options import EvaluationOptions
from tests.forked_ranks import run_ranks

pytestmark = pytest.mark.slow
EXITS = ("small", "medium", "large")
LENGTH = 6
"""Tokens of an answer."""


def answers(family_folder, prompts):
    """Exit -> the greedy answer to each prompt, by the family itself."""
    import torch

    from ruyi_rl.family import Family
    from ruyi_rl.rollout.transformers import end_token_ids
    from ruyi_rl.stages.inputs import load_tokenizer

    family, tokenizer = Family.from_pretrained(family_folder).eval(), load_tokenizer(family_folder)
    ends, found = end_token_ids(family, tokenizer), {}
    for exit in EXITS:
        texts = []
        for prompt in prompts:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            with family.at_exit(exit), torch.no_grad():
                drawn = family.generate(ids, max_new_tokens=LENGTH, do_sample=False, eos_token_id=ends)
            texts.append(tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True).split("a")[0])
        found[exit] = texts
    return found


def chosen(family_folder, rows):
    """Exit -> the choice of each row with the highest log-likelihood, by the family itself."""
    import torch

    from ruyi_rl.family import Family
    from ruyi_rl.stages.inputs import load_tokenizer

    family, tokenizer = Family.from_pretrained(family_folder).eval(), load_tokenizer(family_folder)
    found = {exit: [] for exit in EXITS}
    for row in rows:
        likelihoods = {exit: [] for exit in EXITS}
        for choice in row["choices"]:
            before, ids = (tokenizer(text)["input_ids"] for text in (row["question"], row["question"] + choice))
            with torch.no_grad():
                logits = family(torch.tensor([ids])).logits
            for exit in EXITS:
                log_probs = logits[exit][0].float().log_softmax(-1)
                score = sum(log_probs[place - 1, ids[place]].item() for place in range(len(before), len(ids)))
                likelihoods[exit].append(score)
        for exit in EXITS:
            found[exit].append(max(range(4), key=likelihoods[exit].__getitem__))
    return found


@pytest.fixture(scope="module")
def tasks(family_folder, tmp_path_factory):
    """A folder with a task of each kind over rows on which the exits disagree, and what each exit should get."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(3)
    words = ["".join(draw.choices("bcdefgh", k=3)) for _ in range(12)]
    rows = [{"question": f"{word}?", "choices": draw.sample(words, 4), "gold": draw.randrange(4)} for word in words]
    said = answers(family_folder, [row["question"] for row in rows])
    for number, row in enumerate(rows):
        row["answer"] = said[EXITS[(0, 1, 1, 2, 2, 2)[number % 6]]][number]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ntarget_delimiter: ""\nmetadata: {version: 1.0}\n'
    )
    (folder / "choice.yaml").write_text(
        f"task: own_choice\noutput_type: multiple_choice\n{common}"
        'doc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (folder / "written.yaml").write_text(
        f"task: own_written\noutput_type: generate_until\n{common}"
        'doc_to_target: "{{answer}}"\n'
        f'generation_kwargs: {{until: ["a"], do_sample: false, max_gen_toks: {LENGTH}}}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    picked = chosen(family_folder, rows)
    expected = {
        exit: {
            "own_choice": sum(pick == row["gold"] for pick, row in zip(picked[exit], rows)) / len(rows),
            "own_written": sum(text == row["answer"] for text, row in zip(said[exit], rows)) / len(rows),
        }
        for exit in EXITS
    }
    # Else a mix-up of exits would not be seen.
    assert len({tuple(values.values()) for values in expected.values()}) == 3
    return folder, expected


def config(family_folder, folder, tasks, **harness):
    options = HarnessOptions(tasks=["own_choice", "own_written"], include_path=str(tasks), **harness)
    return RunConfig(
        name="x",
        run_dir=str(folder),
        stage=StageOptions("eval"),
        start_from=str(family_folder),
        evaluation=EvaluationOptions(problems=0),
        eval=EvalOptions(harness=options),
    )


def values(summary):
    return {exit: {task: each["exits"][exit]["value"] for task, each in summary["harness"].items()} for exit in EXITS}


def test_every_exit_gets_what_the_family_gives(family_folder, tasks, tmp_path, capsys, monkeypatch):
    from ruyi_rl.harness import measuring

    folder, expected = tasks
    made = config(family_folder, tmp_path / "x", folder, batch_size=5)
    measure, broken = measuring.measure_exit, []

    def failing(family, exit, *rest):
        if exit == "large" and not broken:
            broken.append(exit)
            raise RuntimeError("the machine went away")
        return measure(family, exit, *rest)

    monkeypatch.setattr(measuring, "measure_exit", failing)
    with pytest.raises(Exception, match="the machine went away"):
        run_stages(made, [])
    kept = StageFolder(tmp_path / "x" / "eval").manifest().progress
    assert [key.split("/")[1] for key in kept if key.startswith("harness/")] == ["small", "medium"]

    measured = []
    monkeypatch.setattr(measuring, "measure_exit", lambda *all: measured.append(all[1]) or measure(*all))
    run_stages(made, [])
    assert measured == ["large"]
    summary = StageFolder(tmp_path / "x" / "eval").summary()
    assert values(summary) == expected
    score = summary["harness"]["own_choice"]
    share, error = score["exits"]["large"]["value"], score["exits"]["large"]["standard_error"]
    assert score["metric"] == "acc" and score["exits"]["large"]["problems"] == 12
    assert error == pytest.approx((share * (1 - share) / 11) ** 0.5)
    raw = json.loads((tmp_path / "x" / "eval" / "harness.json").read_text())
    assert {exit: raw[exit]["results"]["own_choice"]["acc,none"] for exit in EXITS} == {
        exit: expected[exit]["own_choice"] for exit in EXITS
    }
    shown = capsys.readouterr()
    assert "own_written" in shown.out and "it/s" not in shown.err


def test_what_cannot_be_measured_is_refused_before_anything_is(family_folder, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("ruyi_rl.stages.eval.measure_benchmarks", lambda *_: pytest.fail("benchmarks were measured"))
    made = config(family_folder, tmp_path / "x", tasks[0])
    (tmp_path / "lost").mkdir()
    text = (tasks[0] / "choice.yaml").read_text().replace("rows.jsonl", "none.jsonl")
    (tmp_path / "lost" / "choice.yaml").write_text(text)
    made.eval.harness.include_path, made.eval.harness.tasks = str(tmp_path / "lost"), ["own_choice"]
    with pytest.raises(Refusal, match="own_choice cannot be loaded"):
        run_stages(made, [])


def ranks_share(family_folder: Path, tasks: Path, folder: Path) -> None:
    """One rank of several: all questions, and a number of them that leaves ranks without any."""
    with ranks.connected():
        run_stages(config(family_folder, folder / "shared", tasks), [])
        run_stages(config(family_folder, folder / "few", tasks, limit=1.0), [])


def test_ranks_share_the_questions(family_folder, tasks, tmp_path):
    run_ranks(
        "tests.stages.test_harness_stage:ranks_share",
        family_folder,
        tasks[0],
        tmp_path,
        log=tmp_path / "log",
        timeout=60.0,
    )
    summary = StageFolder(tmp_path / "shared" / "eval").summary()
    assert values(summary) == tasks[1]
    assert summary["harness"]["own_choice"]["exits"]["small"]["problems"] == 12
    few = StageFolder(tmp_path / "few" / "eval").summary()["harness"]
    assert few["own_written"]["exits"]["small"] == {
        "value": 1.0,
        "standard_error": None,
        "low": None,
        "high": None,
        "problems": 1,
    }


def test_vllm_finds_the_same(family_folder, tasks, tmp_path):
    pytest.importorskip("vllm")
    from ruyi_rl.rollout.engine import Engine

    made = config(family_folder, tmp_path / "x", tasks[0], backend="vllm", model={"max_model_len": 64})
    made.eval.exits = ["small", "large"]
    run_stages(made, [])
    found = StageFolder(tmp_path / "x" / "eval").summary()["harness"]
    for exit in made.eval.exits:
        assert found["own_choice"]["exits"][exit]["value"] == tasks[1][exit]["own_choice"]
    # Of answers that are no text, vLLM writes the special tokens out: not all of them are the same.
    assert 0 < found["own_written"]["exits"]["large"]["value"] <= tasks[1]["large"]["own_written"]
    assert not Engine.living
