import json
import random
import re
from pathlib import Path

import datasets
import pytest

from ruyi_rl.data import rows as rows_module
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GSM8K = {
    "fields": {"prompt": "question", "answer": "answer"},
    "answer_pattern": r"(?s)^(?P<solution>.*)\n#### (?P<answer>.+?)\s*$",
    "completion_template": "{solution}\n\\boxed{{{answer}}}",
    "completion_strip": r"<<[^<>]*>>",
}
MATH = {"fields": {"prompt": "problem", "answer": "answer"}, "completion_template": "\\boxed{{{answer}}}"}


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"the shared data {SHARED / name} are not here")
    return SHARED / name


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(text, role="user"):
    return [{"role": role, "content": text}]


def test_gsm8k_every_row_and_every_gold():
    folder = shared("gsm8k")
    options = DataOptions(path=str(folder), **GSM8K)
    sft, grpo = (load_data(options, 1, stage) for stage in ("sft", "grpo"))
    for split, name, count in (("train", "train.jsonl", 7473), ("test", "test.jsonl", 1319)):
        raw = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        golds = [row["answer"].split("####")[1].strip() for row in raw]
        for splits in (sft, grpo):
            dataset = getattr(splits, split)
            assert len(dataset) == len(raw) == count
            assert list(dataset["answer"]) == golds
            assert list(dataset["prompt"]) == [chat(row["question"]) for row in raw]
        if split == "train":
            for row, gold, made in zip(raw, golds, sft.train["completion"], strict=True):
                steps = re.sub(r"<<.*?>>", "", row["answer"].split("\n####")[0])
                assert made == chat(f"{steps}\n\\boxed{{{gold}}}", "assistant")
    assert grpo.train.column_names == ["answer", "prompt"]
    assert (grpo.train_report.read, grpo.train_report.kept, grpo.test_report.kept) == (7473, 7473, 1319)
    assert grpo.test_report.seen_in_training == 0


def test_math_drops_and_counts_empty_golds():
    path = shared("math") / "train.json"
    raw = json.loads(path.read_text())
    empty = sum(not row["answer"] for row in raw)
    assert empty > 0
    options = DataOptions(path=str(path), empty_answer="drop", holdout=200, **MATH)
    splits = load_data(options, 1, "grpo")
    assert splits.train_report.read == len(raw) == 7474
    assert splits.train_report.dropped_empty == empty
    assert len(splits.train) + len(splits.test) == len(raw) - empty
    assert set(splits.train["difficulty"]) == {row["difficulty"] for row in raw}
    assert splits.train["answer"][0] and "type" in splits.train.column_names
    with pytest.raises(Refusal, match=r"train\.json line \d+ has an empty answer"):
        load_data(DataOptions(path=str(path), **MATH), 1, "grpo")


def test_rows_of_another_judge_are_kept_with_no_answer(tmp_path):
    tests = {"entry_point": "f", "calls": [{"args": [1], "output": 2}]}
    mixed = [{"prompt": f"p{n}", "answer": None if n % 2 else "3", "tests": tests if n % 2 else None} for n in range(8)]
    mixed[1]["answer"] = " "
    path = write(tmp_path / "train.jsonl", mixed)
    splits = load_data(DataOptions(path=path, empty_answer="keep", holdout=2), 1, "grpo", ["answer", "tests"])
    for row in [*splits.train, *splits.test]:
        number = int(row["prompt"][0]["content"][1:])
        assert (row["answer"], row["tests"]) == ((None, tests) if number % 2 else ("3", None))
    with pytest.raises(Refusal, match="line 2 has an empty answer: ' '.*keep"):
        load_data(DataOptions(path=path, holdout=2), 1, "grpo")


def questions(dataset):
    return [row["prompt"][0]["content"] for row in dataset]


def test_cut_is_seeded_disjoint_and_the_same_in_every_stage(tmp_path):
    # Every third prompt stands there twice: both rows go to the same side.
    rows = [{"prompt": f"q{i}", "answer": str(i), "completion": f"c{i}"} for i in range(90)]
    rows += [{"prompt": f"q{i}", "answer": str(i), "completion": f"d{i}"} for i in range(0, 90, 3)]
    options = DataOptions(path=write(tmp_path / "train.jsonl", rows), holdout=20)
    grpo = load_data(options, 5, "grpo")
    assert not set(questions(grpo.train)) & set(questions(grpo.test))
    assert sorted(questions(grpo.train) + questions(grpo.test)) == sorted(row["prompt"] for row in rows)
    assert len(grpo.test) in (20, 21)
    assert questions(load_data(options, 5, "sft").test) == questions(grpo.test)
    assert questions(load_data(options, 5, "sft").train) == questions(grpo.train)
    assert "completion" not in load_data(options, 5, "sft").test.column_names
    assert questions(load_data(options, 6, "grpo").test) != questions(grpo.test)
    limited = load_data(DataOptions(path=options.path, holdout=20, limit=7), 5, "grpo")
    assert questions(limited.train) == questions(grpo.train)[:7] and questions(limited.test) == questions(grpo.test)


@pytest.mark.parametrize("prompts, held_out", [(12, 1), (400, 40), (5000, 256)])
def test_unasked_a_tenth_is_held_out_but_no_more_than_256(tmp_path, prompts, held_out):
    rows = [{"prompt": f"p{index}", "answer": "1"} for index in range(prompts)]
    splits = load_data(DataOptions(path=write(tmp_path / "train.jsonl", rows)), 1, "grpo")
    assert (len(splits.train), len(splits.test)) == (prompts - held_out, held_out)


def test_row_order_does_not_move_a_prompt_to_the_other_side(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": str(i)} for i in range(60)]
    first = load_data(DataOptions(path=write(tmp_path / "a.jsonl", rows), holdout=10), 1, "grpo")
    random.Random(0).shuffle(rows)
    second = load_data(DataOptions(path=write(tmp_path / "b.jsonl", rows), holdout=10), 1, "grpo")
    assert set(questions(first.test)) == set(questions(second.test))


def test_rows_that_are_in_both_files_are_counted(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": f"q{i}", "answer": "1"} for i in range(10)])
    write(tmp_path / "test.jsonl", [{"prompt": f"q{i}", "answer": "1"} for i in range(8, 14)])
    splits = load_data(DataOptions(path=str(tmp_path)), 1, "grpo")
    assert (len(splits.train), len(splits.test), splits.test_report.seen_in_training) == (10, 6, 2)


def test_a_cut_that_leaves_nothing_is_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"prompt": f"q{i % 5}", "answer": "1"} for i in range(50)])
    with pytest.raises(Refusal, match="only 5 different prompts: 5 rows"):
        load_data(DataOptions(path=path, holdout=5), 1, "grpo")


def test_parquet_with_chat_prompts_and_nested_answer(tmp_path):
    rows = [
        {"prompt": chat(f"q{i}"), "reward_model": {"ground_truth": str(i), "style": "rule"}, "level": i % 3}
        for i in range(30)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    fields = {"answer": "reward_model.ground_truth"}
    options = DataOptions(path=str(tmp_path), fields=fields, holdout=5, system="Think.")
    splits = load_data(options, 1, "grpo")
    by_question = {f"q{i}": row for i, row in enumerate(rows)}
    for made in splits.train:
        source = by_question[made["prompt"][1]["content"]]
        assert made["prompt"] == [{"role": "system", "content": "Think."}, *source["prompt"]]
        assert made["answer"] == source["reward_model"]["ground_truth"]
        assert made["level"] == source["level"] and made["reward_model"] == source["reward_model"]
    assert len(splits.train) == 25


def test_conversations(tmp_path):
    turns = [*chat("a"), *chat("b", "assistant"), *chat("c"), *chat("d", "assistant")]
    rows = [{"messages": turns[:-1] + chat(f"d{i}", "assistant")} for i in range(4)]
    options = DataOptions(path=write(tmp_path / "train.jsonl", rows), holdout=0, system="S")
    system = {"role": "system", "content": "S"}
    sft, grpo, text = (load_data(options, 1, stage).train for stage in ("sft", "grpo", "pretrain"))
    assert sft[2] == {"messages": [system, *rows[2]["messages"]]}
    assert grpo[2] == {"prompt": [system, *turns[:-1]]}
    assert text[2] == {"text": "S\na\nb\nc\nd2"}


def test_texts_for_pretraining(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "one\ntwo", "source": "x"}])
    write(tmp_path / "test.jsonl", [{"text": "three"}])
    splits = load_data(DataOptions(path=str(tmp_path)), 1, "pretrain")
    assert splits.train[0] == {"source": "x", "text": "one\ntwo"} and splits.test[0] == {"text": "three"}
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "completion": "c"}])
    assert load_data(DataOptions(path=path, holdout=0), 1, "pretrain").train[0] == {"text": "p\nc"}


def test_templates(tmp_path):
    row = {"q": "2{2}", "hint": "add", "answer": "so 4", "n": 3}
    options = DataOptions(
        path=write(tmp_path / "train.jsonl", [row]),
        holdout=0,
        prompt_template="{q} ({hint}, {n:02d}) {{x}}",
        completion_template="{why} \\boxed{{{answer}}}",
        answer_pattern=r"(?P<why>\w+) (?P<answer>\d+)",
    )
    made = load_data(options, 1, "sft").train[0]
    assert made["prompt"] == chat("2{2} (add, 03) {x}")
    assert made["completion"] == chat("so \\boxed{4}", "assistant")
    assert made["answer"] == "4" and made["hint"] == "add"


def test_values_of_any_shape_come_back_as_they_were(tmp_path):
    tests = [
        {"setup": "import math", "asserts": ["assert f(2) == 4"]},
        {"inputs": [[1, "a"], [{"k": None}]], "outputs": [1.5, [True]]},
        {"calls": [], "big": 2**70},
    ]
    columns = {
        "prompt": ["p", "q", "r", "s"],
        "tests": [tests[0], tests[1], tests[1], tests[0]],
        "mixed": ["12", 12, None, "z"],
        "number": [1, 2.5, -3, 0],
        "nested": [[[1]], [], [["x"]], [1]],
        "tags": [[], ["a"], ["b", "c"], []],
        "flag": [True, False, None, True],
        "turns": [chat("a"), chat("b") + [{"role": "tool", "content": "c", "name": "d"}], None, []],
        "meta": [{"i": 1}, {"j": []}, {}, {"k": {"l": None}}],
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    made = load_data(DataOptions(path=write(tmp_path / "a.jsonl", rows), holdout=0), 1, "grpo").train
    assert [row | {"prompt": chat(row["prompt"])} for row in rows] == list(made)
    # Beyond what the Json feature holds exactly, the column is JSON text.
    huge = [row | {"tests": tests[2]} for row in rows]
    made = load_data(DataOptions(path=write(tmp_path / "b.jsonl", huge), holdout=0), 1, "grpo").train
    assert [json.loads(text) for text in made["tests"]] == [tests[2]] * 4


def test_numbers_as_answers_become_text(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "answer": 7}, {"prompt": "p", "answer": "x"}])
    assert list(load_data(DataOptions(path=path, holdout=0), 1, "grpo").train["answer"]) == ["7", "x"]


def test_hub_id(monkeypatch):
    hub = datasets.DatasetDict(
        train=datasets.Dataset.from_list([{"question": "q", "answer": "1"}] * 2),
        test=datasets.Dataset.from_list([{"question": "r"}]),
    )
    monkeypatch.setattr(rows_module.datasets, "load_dataset", lambda name, subset: hub)
    options = DataOptions(path="some/set", fields={"prompt": "question"}, train="train", test=None, holdout=0)
    splits = load_data(options, 1, "grpo")
    assert splits.train[1] == {"answer": "1", "prompt": chat("q")} and len(splits.test) == 0
    options.test = "test"
    assert load_data(options, 1, "grpo").test[0] == {"prompt": chat("r")}
    options.fields["answer"] = "answer"
    with pytest.raises(Refusal, match="some/set test row 1 has no field 'answer'"):
        load_data(options, 1, "grpo")
    options.train = "training"
    with pytest.raises(Refusal, match="no split 'training'.*train, test"):
        load_data(options, 1, "grpo")


def test_embedded_task_by_stage():
    options = DataOptions(
        source="arithmetic", task={"train_problems": 30, "test_problems": 10, "demonstrations": 2}, system="Add."
    )
    sft, grpo, text = (load_data(options, 1, stage) for stage in ("sft", "grpo", "pretrain"))
    assert len(sft.train) == 60 and len(grpo.train) == 30 and len(text.train) == 60
    assert questions(sft.train)[:1] == ["Add."]
    assert list(grpo.train["prompt"]) == list(sft.train["prompt"])[:30]
    assert not {"completion", "style"} & set(grpo.train.column_names)
    assert list(sft.test) == list(grpo.test) and len(grpo.test) == 10
    assert text.train[0]["text"].startswith(sft.train[0]["prompt"][1]["content"])
    options.limit = 5
    assert load_data(options, 1, "sft").train_report.kept == 5
