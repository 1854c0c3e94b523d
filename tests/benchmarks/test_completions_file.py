import json

from ruyi_rl.benchmarks.answers import Draft
from ruyi_rl.benchmarks.completions import SHOWN, completion_lines, write_completions
from ruyi_rl.benchmarks.given import file_completions
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.evaluation import evaluate
from ruyi_rl.redaction import Redaction

ROWS = [{"prompt": f"{n}="} for n in range(12)]


class Sayer:
    """Answers with the problem's number and the sample's."""

    def prompt_tokens(self, problem):
        return 2

    def drafts(self, exit, problems, greedy):
        return [[Draft(f"{exit} {p}.{n}", [1, 2], n > 0) for n in range(1 if greedy else 3)] for p in problems]


def judge(completions, **columns):
    return [float(text.endswith("0")) for text in completions]


def measured(texts=None):
    return evaluate(ROWS, [1, *range(3, 12)], Sayer(), Judge(judge), ["small", "large"], texts=texts)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_completion(tmp_path):
    path = tmp_path / "eval" / "completions.jsonl"
    write_completions(path, "now", "sums", completion_lines("now", "sums", ROWS, measured()), Redaction())
    lines = read(path)
    assert len(lines) == 2 * 10 * 4
    assert lines[1] == {
        "occasion": "now",
        "benchmark": "sums",
        "problem": 1,
        "exit": "small",
        "sample": 0,
        "prompt": "1=",
        "completion": "small 1.0",
        "reward": 1.0,
        "right": True,
        "tokens": 2,
        "finished": False,
    }
    assert [line["sample"] for line in lines[:5]] == ["greedy", 0, 1, 2, "greedy"]
    found = file_completions(path, {"sums": ROWS})["sums"]
    assert found["large"][11].samples == ["large 11.0", "large 11.1", "large 11.2"]
    assert found["large"][11].greedy == ["large 11.0"]


def test_a_few_are_shown_of_a_training(tmp_path):
    lines = list(completion_lines("step 2", "sums", ROWS, measured(SHOWN.problems), SHOWN))
    assert len(lines) == 2 * 8 * 3 and {line["sample"] for line in lines} == {"greedy", 0, 1}
    assert all(line["completion"] for line in lines)
    beyond = measured(SHOWN.problems)["small"].problems[8]
    assert [attempt.text for attempt in beyond.attempts] == [""] * 4, "texts that nobody reads are not sent about"


def test_an_occasion_that_comes_again_replaces_its_lines(tmp_path):
    path = tmp_path / "completions.jsonl"

    def write(occasion, benchmark, text):
        line = {"occasion": occasion, "benchmark": benchmark, "completion": text}
        write_completions(path, occasion, benchmark, [line], Redaction())

    for text in ("a", "b"):
        for occasion in ("step 1", "step 10"):
            write(occasion, "sums", text)
    write("step 1", "sums 2", "c")
    found = [(line["occasion"], line["benchmark"], line["completion"]) for line in read(path)]
    assert found == [("step 1", "sums", "b"), ("step 10", "sums", "b"), ("step 1", "sums 2", "c")]
    assert [each.name for each in tmp_path.iterdir()] == ["completions.jsonl"]


def test_secrets_are_hidden_and_any_text_can_be_written(tmp_path):
    path = tmp_path / "completions.jsonl"
    line = {"occasion": "o", "benchmark": "b", "completion": "the key is hunter22 \ud800", "right": True}
    write_completions(path, "o", "b", [line], Redaction.of({"api_key": "hunter22"}, {}))
    assert "hunter22" not in path.read_text() and read(path)[0]["completion"].startswith("the key is ***")
