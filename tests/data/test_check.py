import gzip
import json
import subprocess
import sys
import time

import pytest

from ruyi_rl.data.check import check_data
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

GOOD = {"prompt": "1+1=", "answer": "2", "completion": "\\boxed{2}"}
LINE = json.dumps(GOOD) + "\n"
# Without a time of its own the file is the same in every test process, which parallel collection needs.
CUT_GZIP = gzip.compress(LINE.encode() * 99, mtime=0)[:40]


def lines(*middle):
    return LINE + LINE + "".join(text + "\n" for text in middle) + LINE


def without(name):
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


def with_(**fields):
    return json.dumps(GOOD | fields)


USER_TURN = {"role": "user", "content": "x"}
BAD_TURN = {"role": "usr", "content": "x"}
# File, its content, stage, options, key refused, part of the message.
BAD_FILES = [
    ("train.jsonl", "", "grpo", {}, "data.path", "train.jsonl is empty"),
    ("train.jsonl", "\n \n", "grpo", {}, "data.path", "train.jsonl holds no rows"),
    ("train.jsonl", lines('{"prompt": '), "grpo", {}, "data.path", "train.jsonl line 3 is not JSON"),
    ("train.jsonl", lines("", "nonsense"), "grpo", {}, "data.path", "train.jsonl line 4 is not JSON"),
    ("train.jsonl", lines("[1, 2]"), "grpo", {}, "data.path", "line 3 is not an object with fields but list"),
    ("train.jsonl", lines('{"prompt": "\\ud800"}'), "grpo", {}, "data.path", "line 3 holds half a surrogate pair"),
    ("train.jsonl", (LINE * 2).encode() + b'{"prompt": "\xff"}\n', "grpo", {}, "data.path", "line 3 is not UTF-8"),
    ("train.json", "[]", "grpo", {}, "data.path", "train.json holds no rows"),
    ("train.json", '[{"prompt": "a"},\n\n{"prompt": "b"}', "grpo", {}, "data.path", "train.json line 3 is not JSON"),
    ("train.json", '[{"prompt": "a"},\n{"prompt" "b"}]', "grpo", {}, "data.path", "train.json line 2 is not JSON"),
    ("train.json", '[{"prompt": "a"},\n7]', "grpo", {}, "data.path", "train.json line 2 is not an object"),
    ("train.json", '[\n{"prompt": "a"}\n]\nmore', "grpo", {}, "data.path", "line 4 stands after the array's end"),
    ("train.json", '[\n{"prompt": "a"},\n{\n"q": 1}]', "grpo", {}, "data.fields.prompt", "line 3 has no field"),
    ("train.parquet", "PAR0 nonsense", "grpo", {}, "data.path", "train.parquet is not a parquet file"),
    ("train.jsonl.gz", CUT_GZIP, "grpo", {}, "data.path", "is not a whole gzip file"),
    ("train.jsonl", lines(without("prompt")), "grpo", {}, "data.fields.prompt", "line 3 has no field 'prompt'"),
    ("train.jsonl", lines(without("answer")), "grpo", {}, "data.fields.answer", "line 3 has no field 'answer'"),
    ("train.jsonl", lines(without("completion")), "sft", {}, "data.fields.completion", "line 3 has no field"),
    ("train.jsonl", lines(without("completion")), "pretrain", {}, "data.fields.completion", "line 3 has no field"),
    ("train.jsonl", '{"a": 1}\n', "pretrain", {}, "data.fields.text", "line 1 has no field 'text' (its fields: a)"),
    ("train.jsonl", '{"text": " "}\n', "pretrain", {}, "data.fields.text", "line 1 has no text"),
    ("train.jsonl", lines(with_(answer=None)), "grpo", {}, "data.fields.answer", "line 3 has an empty answer: None"),
    ("train.jsonl", lines(with_(answer="")), "sft", {}, "data.fields.answer", "line 3 has an empty answer: ''"),
    ("train.jsonl", lines(with_(prompt=" ")), "grpo", {}, "data.fields.prompt", "line 3 has a blank prompt"),
    ("train.jsonl", lines(with_(prompt=3)), "grpo", {}, "data.fields.prompt", "line 3 has neither a text nor chat"),
    ("train.jsonl", lines(with_(prompt=[])), "grpo", {}, "data.fields.prompt", "line 3 has a blank prompt"),
    ("train.jsonl", lines(with_(prompt=[BAD_TURN])), "grpo", {}, "data.fields.prompt", "line 3 has neither"),
    ("train.jsonl", lines(with_(completion=None)), "sft", {}, "data.fields.completion", "line 3 has neither"),
    ("train.jsonl", json.dumps({"messages": [USER_TURN]}), "sft", {}, "data.fields.messages", "no assistant message"),
    ("train.jsonl", lines(), "grpo", {"fields": {"answer": "anser"}}, "data.fields.answer", "has no field 'anser'"),
    ("train.jsonl", lines(), "grpo", {"fields": {"tests": "t"}}, "data.fields.tests", "line 1 has no field 't'"),
    ("train.jsonl", lines(), "grpo", {"answer_pattern": "#### (.*)"}, "data.answer_pattern", "line 1: the answer '2'"),
    ("train.jsonl", lines(), "grpo", {"answer_pattern": "("}, "data.answer_pattern", "is no regular expression"),
    ("train.jsonl", lines(), "grpo", {"answer_pattern": "(a)(b)"}, "data.answer_pattern", "has 2 groups"),
    ("train.jsonl", lines(), "grpo", {"prompt_template": "{q}"}, "data.prompt_template", "line 1 has not all"),
    ("train.jsonl", lines(), "grpo", {"prompt_template": "{"}, "data.prompt_template", "'{' is no template"),
    ("train.jsonl", lines(), "grpo", {"prompt_template": "{}"}, "data.prompt_template", "without a field's name"),
    ("train.jsonl", lines(), "grpo", {"empty_answer": "skip"}, "data.empty_answer", "unknown choice 'skip'"),
    ("train.jsonl", lines(), "grpo", {"limit": 0}, "data.limit", "0 is too small"),
    ("train.jsonl", lines(), "grpo", {"source": "row"}, "data.source", "did you mean 'rows'?"),
    ("train.jsonl", lines(), "grpo", {"task": {"level": "easy"}}, "data.task", "belongs to an embedded task"),
    ("train.jsonl", lines(), "grpo", {"source": "arithmetic"}, "data.path", "is not read by the embedded task"),
    ("test.jsonl", lines(), "grpo", {}, "data.train", "no file for the split 'train' (data files there: test"),
    ("notes.txt", "x", "grpo", {}, "data.train", "data files there: none"),
]


@pytest.mark.parametrize("name, text, stage, changes, key, message", BAD_FILES)
def test_bad_data_are_refused_with_file_and_line(tmp_path, name, text, stage, changes, key, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    options = DataOptions(path=str(tmp_path), **changes)
    # The quick look and the loader tell the same.
    for read in (lambda: check_data(options, stage), lambda: load_data(options, 1, stage)):
        with pytest.raises(Refusal) as caught:
            read()
        assert caught.value.key == key
        assert message in str(caught.value)


def test_line_of_the_held_out_file(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines())
    (tmp_path / "test.jsonl").write_text(lines(without("completion"), without("answer")))
    with pytest.raises(Refusal, match=r"test\.jsonl line 4 has no field 'answer' \(its fields: prompt, completion\)"):
        check_data(DataOptions(path=str(tmp_path)), "sft")


def test_fields_that_a_reward_needs(tmp_path):
    (tmp_path / "train.jsonl").write_text(with_(entry_point="f") + "\n" + LINE)
    options = DataOptions(path=str(tmp_path))
    check_data(options, "grpo")
    with pytest.raises(Refusal, match="line 2 has no field 'entry_point'"):
        check_data(options, "grpo", needs=["answer", "entry_point"])


@pytest.mark.parametrize("path", ["no/such/folder/train.jsonl", "./missing", "missing", "owner/train.jsonl"])
def test_missing_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="does not exist"):
        check_data(DataOptions(path=path), "grpo")
    with pytest.raises(Refusal, match="is not given"):
        check_data(DataOptions(), "grpo")


def test_hub_id_is_told_from_a_mistyped_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_data(DataOptions(path="owner/name"), "grpo")
    (tmp_path / "owner").mkdir()
    with pytest.raises(Refusal, match="owner/name does not exist"):
        check_data(DataOptions(path="owner/name"), "grpo")


def test_a_name_that_fits_several_files(tmp_path):
    for name in ("train.jsonl", "train.json"):
        (tmp_path / name).write_text(LINE)
    with pytest.raises(Refusal, match="fits several files"):
        check_data(DataOptions(path=str(tmp_path)), "grpo")
    check_data(DataOptions(path=str(tmp_path), train="train.jsonl"), "grpo")


@pytest.mark.parametrize(
    "name, array",
    [
        ("train.jsonl", False),
        ("train.jsonl.gz", False),
        ("train.json", False),
        ("train.json", True),
        ("train.json.gz", True),
    ],
)
def test_every_kind_of_json_file_is_read(tmp_path, name, array):
    rows = [GOOD | {"prompt": f"行 {i}\u2028\\u0041"} for i in range(500)]
    text = json.dumps(rows, indent=1, ensure_ascii=False) if array else "\r\n".join(map(json.dumps, rows))
    data = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    options = DataOptions(path=str(tmp_path / name), holdout=0)
    check_data(options, "sft")
    made = load_data(options, 1, "sft").train
    assert [row["prompt"][0]["content"] for row in made] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("array", [False, True])
def test_large_files_are_checked_in_well_under_a_second(tmp_path, array):
    row = json.dumps(GOOD | {"prompt": "x" * 1000})
    text = "[" + ",\n".join([row] * 40000) + ",\n7]" if array else (row + "\n") * 40000 + "7\n"
    options = DataOptions(path=str(tmp_path / "train.json"))
    (tmp_path / "train.json").write_text(text)
    start = time.perf_counter()
    check_data(options, "sft")
    assert time.perf_counter() - start < 1
    with pytest.raises(Refusal, match="line 40001 is not an object"):
        load_data(options, 1, "sft")


def test_checking_imports_nothing_heavy(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines())
    code = (
        "import sys; from ruyi_rl.data.check import check_data; from ruyi_rl.data.options import DataOptions;"
        f"check_data(DataOptions(path={str(tmp_path)!r}), 'sft'); check_data(DataOptions(source='arithmetic'), 'sft');"
        "print(sorted({'torch', 'datasets', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
