import pytest

from ruyi_rl.data.check import check_data
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

SMALL = {"train_problems": 30, "test_problems": 10, "demonstrations": 2}


def mixture(**tasks):
    return DataOptions(source="mixture", task=tasks or {"arithmetic": dict(SMALL), "toy_code": dict(SMALL)})


def test_toy_code_by_stage():
    options = DataOptions(source="toy_code", task=dict(SMALL), system="Answer in Python.")
    sft, grpo, text = (load_data(options, 1, stage, ["tests"]) for stage in ("sft", "grpo", "pretrain"))
    assert len(sft.train) == 60 and len(grpo.train) == 30 and len(text.train) == 60
    assert list(grpo.train["prompt"]) == list(sft.train["prompt"])[:30]
    assert not {"completion", "style"} & set(grpo.train.column_names)
    assert list(sft.test) == list(grpo.test) and len(grpo.test) == 10
    assert {row["prompt"][0]["content"] for row in grpo.train} == {"Answer in Python."}
    # As the generator made them: Arrow neither fills keys in nor changes types.
    assert all(set(row["tests"]) == {"entry_point", "calls"} for row in grpo.train)
    kinds = {type(call["output"]) for row in grpo.train for call in row["tests"]["calls"]}
    assert kinds == {int, str}


def test_a_mixture_holds_both_tasks_rows_shuffled():
    options = mixture()
    alone = {
        name: load_data(DataOptions(source=name, task=dict(SMALL)), 1, "grpo") for name in ("arithmetic", "toy_code")
    }
    both = load_data(options, 1, "grpo", ["answer", "tests"])
    for split, size in (("train", 60), ("test", 20)):
        mixed = list(getattr(both, split))
        assert len(mixed) == size
        for name, column, other in (("arithmetic", "answer", "tests"), ("toy_code", "tests", "answer")):
            parts = list(getattr(alone[name], split))
            own = [row for row in mixed if row[column] is not None]
            assert all(row[other] is None for row in own)
            keys = parts[0].keys()
            plain = sorted(repr({key: row[key] for key in keys}) for row in own)
            assert plain == sorted(map(repr, parts))
        assert len({row["answer"] is None for row in mixed[:12]}) == 2, "not shuffled"
    assert list(load_data(options, 1, "grpo").train) != list(load_data(options, 2, "grpo").train)
    assert len(load_data(options, 1, "sft").train) == 120
    texts = load_data(options, 1, "pretrain").train["text"]
    assert sum("def f" in text for text in texts) == 60 and len(texts) == 120


@pytest.mark.parametrize("source, has, lacks", [("toy_code", "tests", "answer"), ("arithmetic", "answer", "tests")])
def test_the_column_of_the_other_judge_is_none(source, has, lacks):
    options = DataOptions(source=source, task=dict(SMALL))
    rows = load_data(options, 1, "grpo", ["answer", "tests"]).train
    assert all(row[has] is not None and row[lacks] is None for row in rows)
    assert lacks not in load_data(options, 1, "grpo").train.column_names


@pytest.mark.parametrize(
    "options, needs, key, message",
    [
        (DataOptions(source="toy_code"), ["answer"], "data.source", "toy_code: its rows have no 'answer'"),
        (
            DataOptions(source="arithmetic"),
            ["tests"],
            "data.source",
            "or another that reads answer, level, terms",
        ),
        (DataOptions(source="toy_code"), ["tests", "difficulty"], "data.source", "no 'difficulty'"),
        (DataOptions(source="toy_code", path="x"), [], "data.path", "data.source is toy_code"),
        (DataOptions(source="toy_code", task={"kinds": ["x"]}), [], "data.task.kinds", "unknown kind"),
        (DataOptions(source="toy_code", task={"train_problems": 9999}), [], "data.task", "10255, but only 2673"),
        (DataOptions(source="mixture"), [], "data.task", "names no task"),
        (mixture(toy_cod={}), [], "data.task.toy_cod", "did you mean 'toy_code'?"),
        (mixture(toy_code=3), [], "data.task.toy_code", "no group of options"),
        (mixture(arithmetic={"levle": 1}, toy_code={}), [], "data.task.arithmetic.levle", "'level'"),
        (mixture(toy_code={"train_problems": 9999}), [], "data.task.toy_code", "only 2673"),
        (mixture(), ["answer", "difficulty"], "data.source", "mixture: its rows have no 'difficulty'"),
        (DataOptions(source="toycode"), [], "data.source", "did you mean 'toy_code'?"),
    ],
)
def test_what_cannot_be_made_or_judged_is_refused(options, needs, key, message):
    with pytest.raises(Refusal) as caught:
        check_data(options, "grpo", needs)
    assert caught.value.key == key
    assert message in str(caught.value)
