"""Which completions a reward is tried on, and what comes with them."""

import json

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.samples import data_samples, file_samples, require_columns

QUESTIONS = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": str(n // 2)} for n in range(4)]


def demonstrations(*texts):
    return [{"prompt": [], "completion": [{"role": "assistant", "content": text}]} for text in texts]


def test_own_completions_then_those_of_rows_with_another_answer():
    samples = data_samples(QUESTIONS, demonstrations("a", "b", "c", "d"), "large")
    assert samples.completions == ["a", "b", "c", "d", "c", "c", "a", "a"]
    assert samples.origins == ["reference"] * 4 + ["exchanged"] * 4
    assert samples.columns["answer"] == ["0", "0", "1", "1"] * 2
    assert samples.columns["prompts"][4:] == samples.columns["prompts"][:4] == [row["prompt"] for row in QUESTIONS]
    assert samples.columns["exit"] == ["large"] * 8 and samples.columns["completion_ids"][1] == [98]
    assert samples.messages()[2] == [{"role": "assistant", "content": "c"}]
    assert samples.groups[:4] == samples.groups[4:] and len(set(samples.groups)) == 4


def test_rows_that_judge_nothing_exchange_what_differs():
    plain = [{"prompt": "p"}, {"prompt": "q"}, {"prompt": "r"}]
    assert data_samples(plain, demonstrations("a", "a", "b"), "").completions == ["a", "a", "b", "b", "b", "a"]
    assert data_samples(plain, demonstrations("a", "a", "a"), "").completions == ["a", "a", "a"]


def test_rows_of_two_tasks_exchange_between_tasks_too():
    mixed = [{"prompt": "p", "answer": "1", "tests": None}, {"prompt": "q", "answer": None, "tests": [{"calls": []}]}]
    assert data_samples(mixed, demonstrations("a", "b"), "").completions == ["a", "b", "b", "a"]


def test_answers_stand_in_for_completions_and_their_lack_is_refused():
    samples = data_samples(QUESTIONS, [], "large")
    assert samples.completions[:4] == [r"\boxed{0}", r"\boxed{0}", r"\boxed{1}", r"\boxed{1}"]
    assert samples.origins[:4] == ["answer"] * 4
    with pytest.raises(Refusal, match="check_reward.completions"):
        data_samples([{"prompt": "p"}], [], "large")


def test_conversations_end_with_the_completion():
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert data_samples([{"prompt": "hi"}], [{"messages": chat}], "").completions == ["ho"]


def lines(tmp_path, *rows):
    path = tmp_path / "drawn.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_drawn_completions_get_the_columns_of_the_row_with_their_prompt(tmp_path):
    rollout = {
        "step": 0, "exit": "small", "prompt": QUESTIONS[3]["prompt"], "prompt_ids": [1], "completion": "so 1",
        "completion_ids": [7, 8], "finished": True, "log_probs": None, "rewards": {"mine": 1.0}, "advantage": 0.5,
    }  # fmt: skip
    generated = {"prompt": "2+1=", "exit": "large", "sample": 0, "completion": "é", "tokens": 2, "finished": True}
    own = {"completion": [{"role": "assistant", "content": "x"}], "answer": "9"}
    path = lines(tmp_path, rollout, generated, own, own)
    samples = file_samples(path, 3, QUESTIONS, "medium")
    assert samples.completions == ["so 1", "é", "x"]
    assert samples.columns["answer"] == ["1", "1", "9"]
    assert samples.columns["exit"] == ["small", "large", "medium"]
    assert samples.columns["completion_ids"] == [[7, 8], [195, 169], [120]]
    assert samples.columns["prompts"] == [QUESTIONS[3]["prompt"], "2+1=", ""]
    assert "rewards" not in samples.columns and "log_probs" not in samples.columns


def test_a_line_without_a_completion_is_refused_by_its_number(tmp_path):
    with pytest.raises(Refusal, match="line 2 has no completion, but text"):
        file_samples(lines(tmp_path, {"completion": "a"}, {"text": "b"}), 9, [], "")


def test_a_column_that_no_sample_has_is_refused_with_the_nearest():
    samples = data_samples(QUESTIONS, [], "large")
    require_columns(samples, {"mine": ["answer"]})
    with pytest.raises(Refusal, match=r"reward.functions.mine: needs the column 'anser'.*did you mean 'answer'"):
        require_columns(samples, {"mine": ["anser"]})
    samples.columns["tests"] = [None] * len(samples)
    with pytest.raises(Refusal, match="'tests'"):
        require_columns(samples, {"mine": ["tests"]})


def test_other_completions_take_the_rows_in_turn():
    samples = data_samples(QUESTIONS, [], "large").saying(["x"] * 9)
    assert samples.completions == ["x"] * 9 and samples.columns["answer"][8] == "0"
    assert samples.columns["completion_ids"] == [[120]] * 9
