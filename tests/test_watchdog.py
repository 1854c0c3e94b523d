"""The watchdog on a clock of its own: what counts as silence, when a run ends, and what its ranks say then."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ruyi_rl.heart import GAVE_UP, Heard, Heart, Pulse, Silence
from ruyi_rl.heartbeats import Heartbeats
from ruyi_rl.watchdog import STACKS, Patience, Watchdog, shown, watched


class Ranks:
    """Watchdogs of several ranks in one process, joined by a dictionary."""

    def __init__(self, folder, world_size, limit=0.3):
        self.store, self.ended, self.recorded = DictionaryStore(), [], []
        self.hearts = [Heart() for _ in range(world_size)]
        self.dogs = [
            Watchdog(
                heart,
                folder,
                Patience(limit, world_size),
                self.record,
                rank,
                connect=(lambda: self.store) if world_size > 1 else None,
                end=lambda status, rank=rank: self.ended.append((rank, status)),
            )
            for rank, heart in enumerate(self.hearts)
        ]

    def record(self, happened):
        self.recorded.append(happened)
        return "what is safe"

    def until_ended(self, count, seconds=20.0):
        soon(lambda: len(self.ended) >= count, seconds)
        return sorted(self.ended)


def soon(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class DictionaryStore:
    """A store of torch's kind: waits for keys that are not there."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value.encode()
            self.changed.notify_all()

    def multi_get(self, keys):
        with self.changed:
            if not self.changed.wait_for(lambda: self.values.keys() >= set(keys), timeout=10):
                raise RuntimeError("timeout")
            return [self.values[key] for key in keys]


class LostStore(DictionaryStore):
    def multi_get(self, keys):
        raise RuntimeError("connection reset")


def pulse(number, silence=0.0, **changes):
    values = {"rank": 1, "host": "b", "process": 7, "phase": "rollout", "step": 12, "since": "", "beat": ""}
    return Pulse(**{**values, **changes}, silence=silence, number=number)


def test_silence_counts_the_seconds_in_which_the_process_ran():
    silence = Silence(tick=1.0)
    for _ in range(5):
        silence.look(1.0, beaten=False)
    assert silence.seconds == 5.0
    silence.look(3600.0, beaten=False)  # the machine slept, or the process was stopped
    assert silence.seconds == 7.0
    silence.look(1.0, beaten=True)
    assert silence.seconds == 0.0


def test_another_rank_is_as_silent_as_it_says_and_silent_while_nothing_is_heard():
    other = Heard(tick=1.0)
    other.look(1.0, None)
    assert (other.silence, other.unheard) == (1.0, 1.0)
    other.look(1.0, pulse(1, silence=40.0))
    assert (other.silence, other.unheard) == (40.0, 0.0)
    for _ in range(3):
        other.look(1.0, pulse(1, silence=40.0))  # the same one: no news
    assert (other.silence, other.unheard) == (43.0, 3.0)
    other.look(1.0, pulse(2, silence=0.5))
    assert (other.silence, other.unheard) == (0.5, 0.0)


def test_a_pulse_comes_back_from_its_text():
    assert Pulse.read(pulse(3, silence=1.5, state=GAVE_UP).text()) == pulse(3, silence=1.5, state=GAVE_UP)


def test_a_rank_waits_for_as_long_as_another_moves_on(tmp_path):
    """Rank 0 has done its part: its own silence alone ends nothing."""
    ranks = Ranks(tmp_path, 2, limit=100.0)
    dog, beats = ranks.dogs[0], {}
    dog._beats.heard = lambda: beats
    for second in range(300):
        beats[1] = pulse(second, silence=float(second % 90))
        assert not dog.look(1.0)
    silent = next(second for second in range(1, 300) if dog.look(1.0))
    assert 100 - 299 % 90 - 2 <= silent <= 100 - 299 % 90 + 2


def test_a_rank_ends_with_the_first_that_gives_up(tmp_path):
    dog = Ranks(tmp_path, 2).dogs[0]
    for state, ends in (("working", False), (GAVE_UP, True)):
        dog.heart.beat()
        dog._beats.heard = lambda state=state: {1: pulse(1, state=state)}
        assert dog.look(0.01) == ends


def test_every_copy_of_the_folder_hears_of_the_end(tmp_path, capfd):
    ranks = Ranks(tmp_path, 3)
    ranks.dogs[1]._keeps = True  # on a host of its own
    for dog in ranks.dogs:
        dog.__enter__()
    assert len(ranks.until_ended(3)) == 3 and len(ranks.recorded) == 2
    assert capfd.readouterr().err.count("what is safe") == 1
    for dog in ranks.dogs:
        dog.__exit__(RuntimeError)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_without_progress_ends_and_says_where_its_ranks_stand(tmp_path, capfd, world_size):
    ranks = Ranks(tmp_path, world_size)
    for dog in ranks.dogs:
        dog.__enter__()
    ranks.hearts[-1].enter("rollout")
    ranks.hearts[-1].at_step(12)
    assert ranks.until_ended(world_size) == [(rank, 1) for rank in range(world_size)]
    shown_text = capfd.readouterr().err
    (happened,) = ranks.recorded  # by one rank, once
    assert happened.startswith("no progress for 0.3 s: ")
    last = world_size - 1
    # Of another rank it may not have come in time.
    place = r" \(.+?:\d+\)" if world_size == 1 else r"( \(.+?:\d+\))?"
    assert re.search(rf"rank {last} \(host \S+\) in rollout after step 12{place}, silent for [\d.]+ s", happened)
    assert happened in shown_text and "what is safe" in shown_text
    for rank in range(world_size):
        stacks = (tmp_path / STACKS.format(rank)).read_text()
        assert "test_a_run_without_progress_ends" in stacks and stacks in shown_text
    assert f"rank {last} (host" in shown_text
    for dog in ranks.dogs:
        dog.__exit__(RuntimeError)
    told = json.loads((tmp_path / "ranks" / f"rank-{last}.json").read_text())
    assert (told["phase"], told["step"], told["process"] > 0) == ("rollout", 12, True)


def test_a_slow_run_that_moves_on_is_left_alone(tmp_path):
    """A token now and then, of one rank only, over more than two limits."""
    ranks = Ranks(tmp_path, 2, limit=1.0)
    for dog in ranks.dogs:
        dog.__enter__()
    for _ in range(12):
        time.sleep(0.2)
        ranks.hearts[1].beat()
    assert not ranks.ended and (tmp_path / "ranks" / "rank-1.json").exists()
    for dog in ranks.dogs:
        dog.__exit__(None)
    assert not ranks.ended and not list(tmp_path.iterdir())  # heartbeats of a run that ends well are gone


def test_a_rank_that_cannot_reach_the_others_ends_by_itself(tmp_path, capfd):
    ranks = Ranks(tmp_path, 2)
    ranks.store = LostStore()
    ranks.dogs[1].__enter__()
    assert ranks.until_ended(1) == [(1, 1)]
    assert "rank 0, of which nothing was heard" in ranks.recorded[0]
    ranks.dogs[1].__exit__(RuntimeError)


def test_a_rank_whose_record_hangs_ends_all_the_same(tmp_path, monkeypatch, capfd):
    """As where the disk is what the run waits for."""
    monkeypatch.setattr(Patience, "grace", 0.1)
    ranks = Ranks(tmp_path, 1)
    over = threading.Event()
    ranks.dogs[0]._record = lambda happened: over.wait() or ""
    ranks.dogs[0].__enter__()
    ended = ranks.until_ended(1, seconds=5.0)
    over.set()
    assert ended == [(0, 1)]
    ranks.dogs[0].__exit__(RuntimeError)


def test_heartbeats_survive_a_full_disk(tmp_path):
    (tmp_path / "ranks").write_text("in the way")
    store = DictionaryStore()
    beats = Heartbeats(lambda: pulse(1), tmp_path, 2, lambda: store, 0.01)
    store.set("rank-0", pulse(5, rank=0).text())
    beats.start()
    assert soon(lambda: 0 in beats.heard())
    beats.stop()
    assert beats.heard()[0].number == 5 and not beats.lost


def context(folder, minutes):
    config = SimpleNamespace(watchdog_minutes=minutes)
    copies = SimpleNamespace(keeps=True)
    return SimpleNamespace(config=config, heart=Heart(), folder=folder, copies=copies, give_up=lambda happened: "")


def test_one_watchdog_listens_however_often_it_is_asked_for(tmp_path):
    found = context(tmp_path, minutes=1.0)
    with watched(found):
        threads = threading.active_count()
        with watched(found):
            assert threading.active_count() == threads
        assert found.heart.watched and soon((tmp_path / "ranks" / "rank-0.json").exists)
    assert not found.heart.watched and not (tmp_path / "ranks").exists()


@pytest.mark.parametrize("minutes", [None, 0.0])
def test_switched_off_it_leaves_nothing(tmp_path, minutes):
    found = context(tmp_path, minutes)
    threads = threading.active_count()
    with watched(found):
        assert threading.active_count() == threads
    assert not list(tmp_path.iterdir())


def test_heartbeats_of_an_earlier_attempt_are_removed(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank-7.json").write_text("{}")
    with watched(context(tmp_path, minutes=1.0)):
        assert not (tmp_path / "ranks" / "rank-7.json").exists()


def test_a_late_rank_may_take_the_folder_away_while_it_is_listed(tmp_path, monkeypatch):
    (tmp_path / "ranks").mkdir()

    def listed(folder, pattern):
        folder.rmdir()  # what a rank does that leaves the section before
        return os.scandir(folder)

    monkeypatch.setattr(Path, "glob", listed)
    with watched(context(tmp_path, minutes=1.0)):
        assert soon((tmp_path / "ranks" / "rank-0.json").exists)


HOLDS_THE_INTERPRETER = """
import ctypes, sys
from pathlib import Path
from ruyi_rl.heart import Heart
from ruyi_rl.watchdog import Patience, Watchdog

class Impatience(Patience):
    grace = 0.1

with Watchdog(Heart(), Path(sys.argv[1]), Impatience(0.2), lambda happened: ""):
    ctypes.PyDLL(None).sleep(60)
"""


def test_a_process_in_which_no_python_runs_is_ended_too(tmp_path):
    """A C function that never lets go of the interpreter holds the watchdog's thread as well."""
    command = [sys.executable, "-c", HOLDS_THE_INTERPRETER, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1 and 'File "<string>", line 11 in <module>' in ended.stderr


def test_times_as_they_are_shown():
    assert [shown(seconds) for seconds in (0.3, 90, 120, 1800, 5400)] == ["0.3 s", "90 s", "2 min", "30 min", "90 min"]
