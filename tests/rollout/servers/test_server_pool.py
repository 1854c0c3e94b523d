import os
import signal
import time

import pytest
from fakes import SAMPLING, gone, requests_of

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.worker import Request, RolloutFailed, Sampling

pytestmark = pytest.mark.slow


def test_completions_come_in_request_order_from_all_workers(open_pool):
    pool = open_pool(workers={"small": 2})
    pool.sync()
    pool.check(list(reversed(requests_of(("small", "large")))))
    statistics = pool.rollout.statistics()
    assert set(statistics) == {"small", "large"}
    for exit in statistics:
        requests = requests_of((exit,))
        assert statistics[exit].tokens == sum(len(completion.token_ids) for completion in pool.expected(requests))
        assert statistics[exit].seconds > 0 and statistics[exit].sync_seconds > 0 and statistics[exit].failures == 0
    assert pool.rollout.statistics() == {}
    assert [worker.alive for worker in pool.rollout.health()] == [True] * 3
    assert [worker.name for worker in pool.rollout.health()] == ["small-0", "small-1", "large-0"]


def test_new_weights_reach_every_worker(open_pool):
    pool = open_pool(workers={"small": 2})
    for _ in range(3):
        pool.step()
        pool.sync()
        pool.check()
    assert len(pool.events("s0-1", "load")) == len(pool.events("s1-1", "load")) == 3
    assert len(pool.events("s0-1", "reset")) == 3


def test_weights_can_travel_through_a_chosen_folder(open_pool, tmp_path):
    (tmp_path / "shared").mkdir()
    pool = open_pool(exchange=str(tmp_path / "shared"))
    pool.sync()
    pool.check()
    assert len(list((tmp_path / "shared").rglob("*.safetensors"))) == 2
    pool.rollout.close()
    assert not list((tmp_path / "shared").iterdir())


def test_samples_of_a_prompt_travel_together_and_share_workers_evenly(open_pool):
    pool = open_pool({"s0-1": {"slow": 0.1}, "s1-1": {"slow": 0.1}}, workers={"small": 2})
    pool.sync()
    requests = requests_of(("small",), prompts=8, samples=4)
    pool.check(requests)
    shares = [pool.events(name) for name in ("s0-1", "s1-1")]
    assert [len(share) for share in shares] == [4, 4]
    assert all(row["n"] == 4 for share in shares for row in share)
    asked = {(tuple(row["prompt"]), row["seed"] + i) for share in shares for row in share for i in range(row["n"])}
    assert asked == {(request.prompt_ids, request.seed) for request in requests}


def test_a_worker_that_is_done_takes_what_waits(open_pool):
    """One that is ten times faster answers more than half."""
    pool = open_pool({"s0-1": {"slow": 0.5}, "s1-1": {"slow": 0.05}}, workers={"small": 2}, engine={"max_num_seqs": 4})
    pool.sync()
    pool.check(requests_of(("small",), prompts=12, samples=4))
    slow, fast = len(pool.events("s0-1")), len(pool.events("s1-1"))
    assert slow + fast == 12 and slow >= 1 and fast >= 8


def test_exits_are_served_at_the_same_time(open_pool):
    pool = open_pool({"s0-1": {"slow": 0.5}, "s1-1": {"slow": 0.5}})
    pool.sync()
    started = time.monotonic()
    pool.check(requests_of(("small", "large"), prompts=1))
    assert time.monotonic() - started < 0.95


def kill_during_generation(pool):
    pool.check()


def kill_between_calls(pool):
    pool.check()
    os.kill(pool.pid("s0-1"), signal.SIGKILL)
    pool.check()


def kill_during_a_sync(pool):
    pool.step()
    pool.sync()
    pool.check()


def kill_before_a_sync(pool):
    pool.check()
    os.kill(pool.pid("s0-1"), signal.SIGKILL)
    pool.step()
    pool.sync()
    pool.check()


KILLS = {
    "first request": ({"s0-1": {"die_after": 0}}, kill_during_generation),
    "during generation": ({"s0-1": {"die_after": 2}}, kill_during_generation),
    "last request": ({"s0-1": {"die_after": 5}}, kill_during_generation),
    "slow answers": ({"s0-1": {"die_after": 2, "slow": 0.2}}, kill_during_generation),
    "twice": ({"s0-1": {"die_after": 2}, "s0-2": {"die_after": 1}}, kill_during_generation),
    "every worker": ({"s0-1": {"die_after": 1}, "s1-1": {"die_after": 2}}, kill_during_generation),
    "between calls": ({}, kill_between_calls),
    "before a sync": ({}, kill_before_a_sync),
    "first sync": ({"s0-1": {"on_load": "die"}}, kill_during_generation),
    "later sync": ({"s0-1": {"die_after": 2}, "s0-2": {"on_load": "die"}}, kill_during_a_sync),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", KILLS)
def test_no_sample_is_lost_or_doubled_when_a_worker_is_killed(open_pool, name, workers):
    script, kill = KILLS[name]
    pool = open_pool(script, workers={"small": workers})
    pool.sync()
    kill(pool)
    pool.step()
    pool.sync()
    pool.check()
    # With a second worker the first does not get as far as to its sixth request.
    assert pool.failures() >= 1 or (workers == 2 and name == "last request")
    assert all("SIGKILL" in line for line in pool.lines)


def test_a_worker_that_hangs_is_given_up_within_the_limit(open_pool):
    pool = open_pool({"s0-1": {"hang_after": 1}}, workers={"small": 2}, timeout=2.0)
    pool.sync()
    started = time.monotonic()
    pool.check()
    assert time.monotonic() - started < 8
    assert pool.failures() == 1
    assert "no progress for 2 s" in pool.lines[0]


def test_a_stopped_process_is_given_up_and_killed(open_pool):
    pool = open_pool({"s0-1": {"stop_after": 1}}, timeout=2.0)
    pool.sync()
    stopped = pool.pid("s0-1")
    pool.check()
    assert pool.failures() == 1
    assert gone([stopped])


def test_slow_is_not_hung(open_pool):
    """An answer takes longer than the limit, but tokens are counted all the time."""
    pool = open_pool({"s0-1": {"slow": 3.0}}, timeout=1.0)
    pool.sync()
    synced = len(pool.beats)
    assert synced >= 4  # two servers that came up and took weights
    pool.check(requests_of(("small",), prompts=1))
    assert pool.failures() == 0
    assert len(pool.beats) - synced >= 4  # not only with the answer


def test_a_worker_that_hangs_in_a_sync_is_replaced(open_pool):
    pool = open_pool({"s0-1": {"die_after": 0}, "s0-2": {"on_load": "hang"}}, workers={"small": 2}, timeout=2.0)
    pool.sync()
    pool.check()
    started = time.monotonic()
    pool.step()
    pool.sync()
    assert time.monotonic() - started < 10
    pool.check()


@pytest.mark.parametrize("kind", ["status", "page", "too few", "outside", "not a number", "positive", "cut"])
def test_rubbish_is_thrown_away(open_pool, kind):
    pool = open_pool({"s0-1": {"rubbish_after": 2, "rubbish": kind}})
    pool.sync()
    pool.check()
    assert pool.failures() == 1


def test_a_worker_that_loses_its_engine_is_replaced(open_pool):
    """Its own process lives on, and only the guardian sees that a part of it died."""
    pool = open_pool({"s0-1": {"engine_dies_after": 0}})
    pool.sync()
    time.sleep(1.5)  # the guardian has to have seen the engine
    pool.check()
    assert "a part of it died: guardian: VLLM::EngineCore" in pool.lines[0]


def test_one_failure_too_many_ends_the_run_and_tells_all(open_pool):
    script = {f"s0-{start}": {"die_after": 0} for start in range(1, 9)}
    pool = open_pool(script, max_failures=2)
    pool.sync()
    with pytest.raises(RolloutFailed) as failed:
        pool.check()
    assert str(failed.value).count("small-0: it was killed by SIGKILL") == 3
    assert str(pool.rollout.spec.folder / "small-0.log") in str(failed.value)
    assert len(pool.lines) == 2


def test_a_server_that_cannot_start_is_not_started_again(open_pool):
    pool = open_pool({"s0-1": {"exit": "RuntimeError: no such device"}})
    with pytest.raises(
        RolloutFailed, match="small-0 does not start: it ended with status 1: RuntimeError: no such dev"
    ):
        pool.sync()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("api_server.py: error: unrecognized arguments: --blok-size 16", "rollout.engine.blok_size"),
        ("api_server.py: error: argument --block-size: invalid choice: 7", "rollout.engine.block_size"),
        ("ValueError: No available memory for the cache blocks.", "rollout.kv_cache_gib"),
    ],
)
def test_an_option_that_keeps_a_server_from_starting_is_named(open_pool, text, key):
    pool = open_pool({"s1-1": {"exit": text}})
    with pytest.raises(Refusal) as refused:
        pool.sync()
    assert refused.value.key == key


def test_a_server_that_does_not_come_up_is_given_up(open_pool):
    pool = open_pool({"s0-1": {"delay": 60}}, start_timeout=1.5)
    pool.sync()
    pool.check()
    assert "did not answer within 1.5 s of its start" in pool.lines[0]


def test_what_no_worker_could_serve_is_the_callers_fault(open_pool):
    pool = open_pool()
    pool.sync()
    for request in (Request("huge", (1,)), Request("small", ()), Request("small", (1,) * 60)):
        with pytest.raises(ValueError):
            pool.rollout.generate([request], SAMPLING)
    with pytest.raises(ValueError, match="temperature"):
        pool.rollout.generate([Request("small", (1,))], Sampling(4, temperature=0.001))
    assert pool.rollout.generate([], SAMPLING) == []
    pool.check()
    assert pool.failures() == 0


def test_closed_is_closed(open_pool):
    pool = open_pool()
    pool.sync()
    pool.rollout.close()
    pool.rollout.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.rollout.generate(requests_of(("small",)), SAMPLING)


def test_completions_arrive_as_servers_answer_each_once_though_one_dies(open_pool):
    pool = open_pool({"s0-1": {"die_after": 2}}, workers={"small": 2})
    pool.sync()
    requests = requests_of(("small", "large"))
    seen = []
    completions = pool.rollout.generate(requests, SAMPLING, lambda places, done: seen.extend(zip(places, done)))
    assert completions == pool.expected(requests)
    assert sorted(place for place, _ in seen) == list(range(len(requests)))
    assert all(completion == completions[place] for place, completion in seen)
    assert pool.failures() == 1
