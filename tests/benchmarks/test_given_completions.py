"""Completions of a file or of the data, matched with the problems."""

import json

import pytest

from ruyi_rl.benchmarks.answers import Given, GivenAnswers
from ruyi_rl.benchmarks.given import REFERENCE, answered_by_all, file_completions, reference_completions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.refusal import Refusal

ROWS = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{n}+1="}]} for n in range(3)]
ROWS.append({"prompt": "1+1="})  # the same question as the second


@pytest.fixture
def file(tmp_path):
    def written(*lines):
        path = tmp_path / "given.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return written


def given(path, **problems):
    return file_completions(path, problems or {"sums": ROWS})


def test_prompts_tell_the_problem_and_exits_who_answered(file):
    path = file(
        {"prompt": "0+1=", "completion": "1", "exit": "small"},
        {"prompt": [{"role": "user", "content": "0+1="}], "completion": "one", "exit": "small", "sample": "greedy"},
        {"problem": 0, "completion": [{"role": "assistant", "content": "2"}], "exit": "large"},
        {"prompt": "1+1=", "completion": "2"},
        {"problem": 2, "prompt": "2+1=", "completion": "3"},
    )
    assert given(path) == {
        "sums": {
            "small": {0: Given(["1"], ["one"])},
            "large": {0: Given(["2"], [])},
            REFERENCE: {1: Given(["2"], []), 3: Given(["2"], []), 2: Given(["3"], [])},
        }
    }


def test_lines_name_their_benchmark_where_there_are_several(file):
    other = [{"prompt": "2+2="}]
    path = file(
        {"benchmark": "sums", "problem": 0, "completion": "1"},
        {"benchmark": "more", "problem": 0, "completion": "4"},
        {"benchmark": "unasked", "problem": 99, "completion": "?"},
    )
    found = given(path, sums=ROWS, more=other)
    assert found["more"] == {REFERENCE: {0: Given(["4"], [])}} and list(found["sums"][REFERENCE]) == [0]
    assert list(given(path)) == ["sums"], "a file may hold more than is asked for"
    with pytest.raises(Refusal, match="line 1 has no benchmark"):
        given(file({"problem": 0, "completion": "1"}), sums=ROWS, more=other)
    with pytest.raises(Refusal, match="holds no completion of more"):
        given(file({"benchmark": "sums", "problem": 0, "completion": "1"}), sums=ROWS, more=other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "0+1="}, "line 1 has no completion, but prompt"),
        ({"prompt": "0+1=", "completion": None}, "line 1 has a completion that is no text: null"),
        ({"completion": "1"}, "line 1 has neither prompt nor problem, but completion"),
        ({"prompt": "9+1=", "completion": "1"}, "line 1 has a prompt that sums has not"),
        ({"problem": 4, "completion": "1"}, "line 1 is of problem 4, and sums has 4"),
        ({"problem": "0", "completion": "1"}, "line 1 is of problem '0'"),
        ({"problem": 0, "prompt": "1+1=", "completion": "1"}, "another prompt than problem 0"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_place(file, line, message):
    with pytest.raises(Refusal, match=message) as refused:
        given(file(line))
    assert refused.value.key == "eval.completions"


def test_completions_of_several_occasions_are_no_samples_of_one(file):
    path = file(*({"occasion": f"step {n}", "problem": 0, "completion": "1"} for n in (1, 2)))
    with pytest.raises(Refusal, match="another occasion: step 1, step 2"):
        given(path)


def test_only_problems_that_all_have_answered_are_compared():
    found = {"small": {0: Given(["1"], []), 2: Given(["1"], [])}, "large": {0: Given(["1"], [])}}
    assert answered_by_all(found, ["small", "large"], [0, 1, 2]) == [0]
    assert answered_by_all(found, ["small"], [0, 1, 2]) == [0, 2]
    with pytest.raises(Refusal, match=r"eval\.exits: 'smal' has no given completions .did you mean 'small'"):
        answered_by_all(found, ["smal"], [0])
    with pytest.raises(Refusal, match="no problem has completions of all of small, large"):
        answered_by_all(found, ["small", "large"], [1, 2])


def test_answers_are_handed_out_with_their_tokens():
    answers = GivenAnswers(byte_tokenizer(), ROWS, {"small": {0: Given(["12", "3"], []), 3: Given(["4"], ["5"])}})
    samples = answers.drafts("small", [0, 3], greedy=False)
    assert [[draft.text for draft in each] for each in samples] == [["12", "3"], ["4"]]
    assert samples[0][0].token_ids == list(b"12")
    assert [[draft.text for draft in each] for each in answers.drafts("small", [0, 3], True)] == [[], ["5"]]


def test_the_datas_own_completions_and_without_them_its_answers(tmp_path):
    rows = [{"question": f"{n}+1=", "answer": str(n + 1), "how": f"{n} and 1 is {n + 1}"} for n in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = DataOptions(name="x", path=str(tmp_path), train="none", fields={"prompt": "question", "answer": "answer"})
    problems = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    boxed = reference_completions(options, 1, problems)
    assert boxed == {REFERENCE: {n: Given([f"\\boxed{{{n + 1}}}"], []) for n in range(4)}}
    options.completion_template = "{how}"
    assert reference_completions(options, 1, problems[::-1])[REFERENCE][0] == Given(["3 and 1 is 4"], [])
    with pytest.raises(Refusal, match="neither completions nor answers"):
        reference_completions(DataOptions(name="x", path=str(tmp_path)), 1, [{"prompt": "?"}])
