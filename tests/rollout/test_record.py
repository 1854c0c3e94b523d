import json

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.record import ReplayRollout, RolloutFile, read_rollouts
from ruyi_rl.rollout.worker import Request, RolloutFailed, Sampling

ROWS = [
    {"exit": exit, "prompt_ids": [1, sample], "completion_ids": [5, n], "finished": True, "log_probs": [-1.0, -2.0]}
    for exit in ("small", "large")
    for sample in (0, 1)
    for n in (7, 8)
]


@pytest.fixture
def file(tmp_path):
    file = RolloutFile(tmp_path / "rollouts.jsonl")
    file.write(ROWS[:3])
    file.write(ROWS[3:])
    return file


def test_what_is_written_is_read(file):
    assert read_rollouts(file.path) == ROWS and file.rows == len(ROWS)


def test_each_request_gets_the_next_completion_of_its_prompt_and_exit(file):
    replay = ReplayRollout(file.path)
    requests = [Request("large", [1, 1]), Request("small", [1, 0]), Request("large", [1, 1])]
    found = replay.generate(requests, Sampling(8))
    assert [completion.token_ids for completion in found] == [[5, 7], [5, 7], [5, 8]]
    assert found[0].log_probs == [-1.0, -2.0] and found[0].finished
    with pytest.raises(RolloutFailed, match="no further completion at exit 'large'"):
        replay.generate(requests[:1], Sampling(8))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"exit": None}, "line 2: exit"),
        ({"prompt_ids": []}, "line 2: prompt_ids"),
        ({"completion_ids": [1, -1]}, "line 2: completion_ids"),
        ({"completion_ids": "12"}, "line 2: completion_ids"),
        ({"log_probs": [-1.0]}, "line 2: 1 log_probs for 2 tokens"),
        ({"finished": 1}, "line 2: finished"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, named):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[0], **change}) + "\n")
    with pytest.raises(Refusal, match=named) as refused:
        ReplayRollout(path)
    assert refused.value.key == "grpo.replay"


def test_no_file_no_rows_no_json(tmp_path):
    with pytest.raises(Refusal, match="no file"):
        ReplayRollout(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(Refusal, match="is empty"):
        ReplayRollout(tmp_path / "empty.jsonl")
    (tmp_path / "text.jsonl").write_text("{\n")
    with pytest.raises(Refusal, match="line 1 is no JSON"):
        ReplayRollout(tmp_path / "text.jsonl")


def test_ranks_count_what_the_others_take_so_that_a_prompt_may_change_ranks(file, monkeypatch):
    """First each rank has one prompt; in the next epoch they have changed, and one goes on from what was said."""
    first, second = Request("small", [1, 0]), Request("small", [1, 1])
    replays = [ReplayRollout(file.path) for _ in range(2)]

    def drawn(replays, *requests):
        keys = [[(request.exit, tuple(request.prompt_ids))] for request in requests]
        monkeypatch.setattr("ruyi_rl.ranks.gathered", lambda mine: keys)
        found = []
        for rank, replay in enumerate(replays):
            monkeypatch.setattr("ruyi_rl.ranks.rank", lambda rank=rank: rank)
            found += replay.generate([requests[rank]], Sampling(8))
        return [completion.token_ids[1] for completion in found]

    assert drawn(replays, first, second) == [7, 7]
    assert replays[0].taken() == replays[1].taken() == [1, 1, 0, 0]
    going_on = [ReplayRollout(file.path) for _ in range(2)]
    for replay in going_on:
        replay.skip(replays[0].taken())
    assert drawn(replays, second, first) == drawn(going_on, second, first) == [8, 8]
    one = Request("large", [1, 0])
    assert drawn(replays, one, one) == [7, 8]  # of one prompt that both have, the file's order
