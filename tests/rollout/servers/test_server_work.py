import copy
import resource

import fake_server
import pytest

from ruyi_rl.rollout.servers.serving import connections
from ruyi_rl.rollout.servers.work import ExitWork, Rubbish, grouped, read_answer
from ruyi_rl.rollout.worker import Completion, Request, Sampling

SAMPLING = Sampling(max_new_tokens=12)


def answer(prompt=(65, 66), seed=5, samples=3, limit=12):
    """What a healthy server gives."""
    choices = []
    for index in range(samples):
        tokens, log_probs = fake_server.draw(list(prompt), seed + index, "weights", limit)
        finish = "stop" if tokens[-1] == fake_server.END else "length"
        logprobs = {"token_logprobs": log_probs}
        choices.append({"index": index, "token_ids": tokens, "finish_reason": finish, "logprobs": logprobs})
    return {"choices": choices}


def read(body, samples=3):
    return read_answer(body, samples, SAMPLING, 267, (fake_server.END,))


def test_an_answer_gives_its_samples_in_order():
    completions = read(answer(samples=40), samples=40)
    for index, completion in enumerate(completions):
        tokens, log_probs = fake_server.draw([65, 66], 5 + index, "weights", 12)
        assert completion == Completion(tokens, tokens[-1] == fake_server.END, log_probs)
    assert {completion.finished for completion in completions} == {True, False}


@pytest.mark.parametrize("kind", [kind for kind in fake_server.RUBBISH if kind not in ("status", "page")])
def test_rubbish_is_recognised(kind):
    healthy = answer()
    read(healthy)
    _, spoiled = fake_server.RUBBISH[kind](copy.deepcopy(healthy))
    with pytest.raises(Rubbish):
        read(spoiled)


@pytest.mark.parametrize(
    "change",
    [
        {"finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0, -1.0]}},
        {
            "finish_reason": "stop",
            "token_ids": [1, fake_server.END, 2, fake_server.END],
            "logprobs": {"token_logprobs": [-1.0] * 4},
        },
        {"token_ids": [True, fake_server.END], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0] * 2}},
        {"token_ids": [267, fake_server.END], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0] * 2}},
        {"token_ids": [1, fake_server.END], "finish_reason": "stop", "logprobs": {"token_logprobs": [None, -1.0]}},
        {"token_ids": [1, fake_server.END], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0, -1e999]}},
    ],
)
def test_a_sample_that_contradicts_itself_is_rubbish(change):
    spoiled = answer()
    spoiled["choices"][1].update(change)
    with pytest.raises(Rubbish):
        read(spoiled)


def test_rounding_above_zero_is_no_rubbish():
    body = answer(samples=1)
    body["choices"][0]["logprobs"]["token_logprobs"][0] = 1e-6
    assert read(body, samples=1)[0].log_probs[0] == 1e-6


def test_groups_are_runs_of_one_prompt_with_consecutive_seeds():
    requests = [
        *(Request("a", (1, 2), seed) for seed in (5, 6, 7)),
        Request("a", [1, 2], 9),
        Request("a", (1, 3), 10),
        Request("b", (1, 3), 11),
        *(Request("b", (1, 3), seed) for seed in range(20, 27)),
    ]
    groups = grouped(requests, SAMPLING, limit=4)
    assert [(group.exit, group.seed, group.positions) for group in groups] == [
        ("a", 5, (0, 1, 2)),
        ("a", 9, (3,)),
        ("a", 10, (4,)),
        ("b", 11, (5,)),
        ("b", 20, (6, 7, 8, 9)),
        ("b", 24, (10, 11, 12)),
    ]
    asked = [(g.exit, g.prompt_ids, g.seed + i) for g in groups for i in range(len(g.positions))]
    assert asked == [(request.exit, tuple(request.prompt_ids), request.seed) for request in requests]


def test_greedy_samples_travel_alone():
    requests = [Request("a", (1, 2), seed) for seed in range(3)]
    assert [group.positions for group in grouped(requests, Sampling(4, temperature=0), limit=8)] == [(0,), (1,), (2,)]


def test_a_share_is_even_but_no_larger_than_an_engine():
    requests = [Request("a", (prompt, 2), 100 * prompt + seed) for prompt in range(10) for seed in range(4)]
    work = ExitWork(grouped(requests, SAMPLING, limit=4))
    assert [work.slots(workers, 1000) for workers in (1, 2, 3, 20)] == [10, 5, 4, 1]
    assert [work.slots(1, sequences) for sequences in (1, 4, 5, 16)] == [1, 1, 2, 4]


def test_connections_leave_files_to_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert [connections(workers) for workers in (1, 4, 1000)] == [128, 32, 1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_group_is_answered_once():
    work = ExitWork(grouped([Request("a", (1,), 0), Request("a", (1,), 1), Request("a", (2,), 9)], SAMPLING, limit=4))
    work.begin()
    first, second = work.groups
    work.answer(first, [Completion([1], True), Completion([2, 3], True)])
    assert not work.done and work.tokens == 3
    with pytest.raises(AssertionError, match="twice"):
        work.answer(first, [Completion([1], True), Completion([2], True)])
    with pytest.raises(ValueError):
        work.answer(second, [])
    work.begin()
    assert work.waiting.get_nowait() is second and work.waiting.empty()
    work.answer(second, [Completion([4], False)])
    assert work.done and work.finished.is_set()


def test_an_answered_group_is_passed_on_with_its_places():
    requests = [Request("a", (1,), 0), Request("b", (1,), 0), Request("a", (1,), 1), Request("a", (2,), 9)]
    seen = []
    groups = [group for group in grouped(requests, SAMPLING, limit=4) if group.exit == "a"]
    work = ExitWork(groups, lambda places, completions: seen.append((places, completions)))
    work.begin()
    for group in reversed(work.groups):
        work.answer(group, [Completion([group.seed], True)] * len(group.positions))
    assert [place for places, _ in seen for place in places] == [3, 2, 0]
    assert [completions[0].token_ids for _, completions in seen] == [[9], [1], [0]]
