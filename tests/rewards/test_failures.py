"""Failed samples: exact counts, what is kept on disk, and when a run ends."""

import json
import random
from collections import Counter

import pytest

from ruyi_rl import ranks
from ruyi_rl.failure import StageFailed
from ruyi_rl.rewards.failures import (
    KEPT,
    FailedSample,
    RewardFailures,
    Share,
    counted,
    failure_counts,
    read_rows,
    share_of,
)
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.scored import Failure, Scored, State

S, A, F, C, U = State.SCORED, State.ABSTAINED, State.FAILED, State.CLOSED, State.UNDECIDED


def group(**functions):
    return RewardOptions(functions={name: RewardFunctionOptions(path="p.py", **f) for name, f in functions.items()})


def batch(kinds, name="math", exit="large", message="ValueError: bad"):
    """A share of one function: a kind, or None for a scored completion."""
    states = [[S if kind is None else F] for kind in kinds]
    failures = [Failure(row, name, kind, message, "plugin.py:7") for row, kind in enumerate(kinds) if kind]
    scored = Scored((name,), [[None]] * len(kinds), states, failures, {}, {}, {})
    texts = [f"completion {row}" for row in range(len(kinds))]
    return share_of(scored, [exit] * len(kinds), ["prompt"] * len(kinds), texts)


@pytest.fixture
def keeper(tmp_path):
    def make(options=None, **fields):
        shown = []
        failures = RewardFailures(options or group(math=fields), tmp_path / "reward_failures.jsonl", shown.append)
        failures.shown = shown
        return failures

    return make


def test_a_share_knows_the_asked_and_the_failed():
    failures = [Failure(0, "b", "timeout", "10 s", ""), Failure(3, "a", "nan", "nan", "x.py:1")]
    states = [[S, F], [A, S], [S, C], [F, U]]
    scored = Scored(("a", "b"), [[None, None]] * 4, states, failures, {}, {}, {})
    share = share_of(scored, ["e", "f", "e", "f"], list("pqrs"), list("wxyz"))
    assert share.outcomes == {
        "a": [("e", None), ("f", None), ("e", None), ("f", "nan")],
        "b": [("e", "timeout"), ("f", None)],
    }
    assert share.samples == [
        FailedSample("b", "timeout", "10 s", "", "e", "p", "w"),
        FailedSample("a", "nan", "nan", "x.py:1", "f", "s", "z"),
    ]
    assert counted([share, share]) == {"a": {"nan": 2}, "b": {"timeout": 2}}
    assert counted([share], exit="e") == {"b": {"timeout": 1}}


def test_counts_are_exact_whatever_is_kept(keeper):
    failures = keeper(max_failure_share=1.0)
    draw, expected = random.Random(0), Counter()
    for step in range(6):
        kinds = [draw.choice([None, "timeout", "crash"]) for _ in range(90)]
        expected.update(kind for kind in kinds if kind)
        failures.take([batch(kinds[:45]), batch(kinds[45:])], "train", step)
    failures.take([batch(["nan"])], "evaluation", occasion="before")
    assert failure_counts(failures.path) == {"math": dict(expected)}
    assert failure_counts(failures.path, "evaluation") == {"math": {"nan": 1}}


def test_the_file_holds_the_first_samples_and_says_what_it_left_out(keeper):
    failures = keeper(max_failure_share=1.0)
    failures.take([batch([None, "timeout"] * 50), batch(["crash"])], "train", 3)
    *rows, last = read_rows(failures.path)
    assert len(rows) == KEPT + 1
    assert rows[0] == {
        "step": 3,
        "mode": "train",
        "function": "math",
        "kind": "timeout",
        "message": "ValueError: bad",
        "place": "plugin.py:7",
        "exit": "large",
        "prompt": "prompt",
        "completion": "completion 1",
    }
    assert last["failures"] == {"math": {"timeout": 50, "crash": 1}} and last["kept"] == KEPT + 1
    assert f"{KEPT} samples" in last["limit"] and (last["step"], last["mode"]) == (3, "train")


def test_a_night_of_failures_does_not_fill_the_disk(keeper, monkeypatch):
    monkeypatch.setattr("ruyi_rl.rewards.failures.LARGEST_FILE", 20_000)
    failures = keeper(max_failure_share=1.0)
    for step in range(100):
        failures.take([batch(["timeout"] * 20)], "train", step)
    assert failures.path.stat().st_size < 20_000 + 100 * 300
    assert failure_counts(failures.path) == {"math": {"timeout": 2000}}


def test_nothing_is_written_where_nothing_failed_and_by_other_ranks(keeper, monkeypatch):
    failures = keeper()
    failures.take([batch([None] * 10)], "train", 0)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    failures.take([batch(["nan"])], "train", 0)
    assert not failures.path.exists() and failure_counts(failures.path) == {}


def test_any_text_can_be_kept(keeper):
    failures = keeper(max_failure_share=1.0)
    sample = FailedSample(
        "math", "crash", "答案 \udcff", "", "large", [{"role": "user", "content": "问"}], "\x00\ud800"
    )
    failures.take([Share({"math": [("large", "crash")]}, [sample])], "train", 0)
    assert read_rows(failures.path)[0]["prompt"] == [{"role": "user", "content": "问"}]
    assert "问" in failures.path.read_text()


def test_what_comes_again_is_forgotten_and_a_cut_line_is_left_out(keeper):
    failures = keeper(max_failure_share=1.0)
    for step in range(4):
        failures.take([batch(["nan"])], "train", step)
    with open(failures.path, "a") as file:
        file.write('{"step": 9, "mo')
    failures.forget(lambda row: row["step"] >= 2)
    assert [row["step"] for row in read_rows(failures.path)] == [0, 0, 1, 1]
    assert failure_counts(failures.path) == {"math": {"nan": 2}}
    assert all(json.loads(line) for line in failures.path.read_text().splitlines())


def test_the_share_is_of_the_last_512_once_there_are_64(keeper):
    failures = keeper(max_failure_share=0.25)
    failures.take([batch(["nan"] * 63)], "train", 0)
    failures.take([batch([None] * 200)], "train", 1)  # 63 of 263 is below a quarter
    failures.take([batch(["timeout"] * 2)], "train", 2)
    with pytest.raises(StageFailed, match=r"failed on 67 of its last 267 completions \(63 nan, 4 timeout\)") as caught:
        failures.take([batch(["timeout"] * 2)], "train", 3)
    assert "reward.functions.math.max_failure_share=0.25" in str(caught.value)
    assert str(failures.path) in str(caught.value)
    (table,) = failures.shown
    assert "nan" in table and "timeout" in table and "plugin.py:7: ValueError: bad" in table and "completion 1" in table
    failures = keeper(max_failure_share=0.25)
    for kinds in ([None] * 200, ["nan"] * 40, [None] * 500, ["nan"] * 128):  # the forty leave, the 128 are a quarter
        failures.take([batch(kinds)], "train", 0)
    with pytest.raises(StageFailed, match="on 129 of its last 512"):
        failures.take([batch(["nan"])], "train", 10)


def test_a_whole_first_batch_ends_the_run_and_a_share_of_1_never_does(keeper):
    with pytest.raises(StageFailed, match="64 of its last 64"):
        keeper().take([batch(["crash"] * 64)], "train", 0)
    keeper(max_failure_share=1.0).take([batch(["crash"] * 600)], "train", 0)


def test_the_shares_of_all_ranks_decide_together(keeper):
    shares = [batch([None] * 40), batch(["nan"] * 40)]
    messages = []
    for _ in range(2):
        with pytest.raises(StageFailed) as caught:
            keeper(max_failure_share=0.4).take(shares, "train", 0)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(StageFailed, match="no rewards: RewardError: no worker"):
        keeper().take([batch([None] * 4), Share({}, problem="RewardError: no worker")], "train", 0)


def test_the_key_is_the_one_in_the_groups_block(tmp_path):
    own = RewardFailures(group(math={"on_error": "stop"}), None, lambda text: None, "eval.benchmarks.mine")
    with pytest.raises(StageFailed, match=r"\(eval\.benchmarks\.mine\.reward\.functions\.math\.on_error=stop"):
        own.take([batch(["timeout"])], "evaluation")
    own = RewardFailures(group(math={}), None, lambda text: None, "eval.benchmarks.mine")
    with pytest.raises(StageFailed, match=r"eval\.benchmarks\.mine\.reward\.functions\.math\.max_failure_share=0\.2"):
        own.take([batch(["timeout"] * 64)], "evaluation")


def test_functions_are_watched_one_by_one(keeper):
    failures = keeper(group(math={}, form={"max_failure_share": 0.9}))
    failures.take([batch([None] * 100), batch(["nan", None] * 50, name="form")], "train", 0)
    with pytest.raises(StageFailed, match="reward function math"):
        failures.take([batch(["nan"] * 30)], "train", 0)


def test_on_error_stop_ends_the_run_with_line_and_sample(keeper):
    failures = keeper(on_error="stop")
    failures.take([batch([None] * 5)], "train", 0)
    with pytest.raises(StageFailed) as caught:
        failures.take([batch([None, "exception"])], "train", 1)
    message = str(caught.value)
    for part in ("plugin.py:7", "ValueError: bad", "'completion 1'", "exit large", "on_error=stop", str(failures.path)):
        assert part in message
    assert "'prompt'" in failures.shown[0] and failure_counts(failures.path) == {"math": {"exception": 1}}
