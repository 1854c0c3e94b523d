"""What goes in comes out: every completion once, in order, with its own columns, whatever the workers do."""

import os
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy
import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.pool import PoolLimits, RewardPool, Scores
from ruyi_rl.rewards.pool.pool import default_workers

UNEVEN = """
import os, time
def one(completions, answer, scale, **kwargs):
    time.sleep(max(float(text) % 7 for text in completions) / 500)
    kwargs["log_extra"]("worker", [os.getpid()] * len(completions))
    kwargs["log_extra"]("size", [len(completions)] * len(completions))
    return [scale * (float(text) + value) for text, value in zip(completions, answer)]
"""


def test_order_and_columns(pool):
    made = pool(UNEVEN, workers=4)
    for count in (1, 2, 3, 17, 400):
        scores = made.score([str(n) for n in range(count)], {"answer": [n / 2 for n in range(count)], "scale": 2})
        assert scores.rewards == [3.0 * n for n in range(count)]
        assert scores.failures == [] and scores.seconds > 0
    assert max(scores.extra["size"]) > 1


def test_more_workers_where_the_work_pays_for_them(pool):
    source = "import os, time\ndef one(completions, seconds, **kwargs):\n    time.sleep(seconds * len(completions))\n"
    made = pool(source + "    return [os.getpid()] * len(completions)\n", workers=3)
    assert len(set(made.score(["a"] * 500, {"seconds": 0}).rewards)) == 1
    assert len(set(made.score(["a"] * 40, {"seconds": 0.1}).rewards)) == 3


def test_answers_and_samples_that_are_tried_again_beat(pool):
    source = "import time\ndef one(completions, **kwargs):\n    time.sleep(60 if 'hang' in completions else 0.02)\n"
    made = pool(source + "    return [1.0] * len(completions)\n", workers=1, timeout=0.3)
    beats = []
    made.listen(lambda: beats.append(time.monotonic()))
    made.score(["a"] * 40, {})
    answered = len(beats)
    assert answered > 1
    assert made.score(["hang"], {}).failures and len(beats) > answered


def test_nothing_to_score(pool):
    assert pool("import no_such\ndef one(completions, **kwargs): ...\n").score([], {"answer": []}) == Scores(
        [], seconds=pytest.approx(0, abs=1)
    )


def test_calls_of_several_threads(pool):
    made = pool(UNEVEN, workers=2)
    found, threads = {}, []

    def score(thread):
        texts = [str(thread * 100 + n) for n in range(50)]
        found[thread] = made.score(texts, {"answer": [thread] * 50, "scale": -1}).rewards

    for thread in range(6):
        threads.append(threading.Thread(target=score, args=(thread,)))
        threads[-1].start()
    futures = [made.submit([str(n)] * 3, {"answer": (1, 2, 3), "scale": n}) for n in range(10)]
    assert [future.result().rewards for future in futures] == [[n * (n + k) for k in (1, 2, 3)] for n in range(10)]
    for thread in threads:
        thread.join()
    assert found == {thread: [-1.0 * (thread * 101 + n) for n in range(50)] for thread in range(6)}


GROUPED = """
import time
def one(completions, **kwargs):
    if "hang" in completions:
        time.sleep(60)
    if "raise" in completions:
        raise ValueError
    return [float(len(completions))] * len(completions)
"""


def test_groups_are_never_cut(pool):
    made = pool(GROUPED, scope="group", workers=2, timeout=0.5)
    sizes = {"a": 3, "b": 8, 3: 1, None: 5}
    groups = [group for place in range(8) for group, size in sizes.items() if place < size]  # scattered
    completions = ["x"] * len(groups)
    for _ in range(3):
        # Several groups may share a call: nothing may depend on that.
        scores = made.score(completions, {}, groups)
        assert all(reward >= sizes[group] for reward, group in zip(scores.rewards, groups, strict=True))
    completions[groups.index("a")], completions[groups.index(None)] = "raise", "hang"
    scores = made.score(completions, {}, groups)
    assert {groups[failure.index]: failure.kind for failure in scores.failures} == {"a": "exception", None: "timeout"}
    assert len(scores.failures) == 8
    assert [reward is None for reward in scores.rewards] == [group in ("a", None) for group in groups]
    with pytest.raises(ValueError, match="scope=group"):
        made.score(["x"], {})
    with pytest.raises(ValueError, match="1 for 2"):
        made.score(["x", "y"], {}, ["a"])


def test_a_batch_is_never_cut(pool):
    made = pool(GROUPED, scope="batch", workers=2, timeout=0.2)
    for count in (1, 50, 700):
        assert made.score(["x"] * count, {}).rewards == [float(count)] * count
    scores = made.score(["x", "raise", "y"], {})
    assert [(failure.index, failure.kind) for failure in scores.failures] == [(n, "exception") for n in range(3)]
    assert len(made.score(["hang"] * 3, {}).failures) == 3


LOGS = """
def one(completions, log_extra, log_metric, trainer_state=None, **kwargs):
    log_extra("length", [len(text) for text in completions])
    log_extra("odd", [object, {"a": (1, float("nan"))}, 10**30, "x" * 10**6][: len(completions)])
    for text in completions:
        log_metric("each", len(text))
    if "quiet" not in completions:
        log_extra("said", list(completions))
    if "raise" in completions:
        raise ValueError
    return [float(trainer_state.global_step)] * len(completions)
"""


@dataclass
class State:
    global_step: int = 0
    log_history: list = field(default_factory=list)


def test_logged_columns_and_metrics(pool, capfd):
    made = pool(LOGS, workers=2)
    completions = ["a" * (n % 9) for n in range(60)]
    completions[7], completions[30] = "raise", "quiet"
    scores = made.score(completions, {"trainer_state": State(5), "log_extra": print, "log_metric": print})
    lengths = [len(text) for text in completions]
    assert scores.rewards == [None if n == 7 else 5.0 for n in range(60)]
    assert scores.extra["length"] == [None if n == 7 else length for n, length in enumerate(lengths)]
    assert scores.metrics == {"each": [float(length) for n, length in enumerate(lengths) if n != 7]}
    assert scores.extra["said"][0] == "" and scores.extra["said"][30] is None and scores.extra["said"][7] is None
    # Columns of a wrong length are left out, and that is said.
    assert made.score(completions[:20], {"trainer_state": SimpleNamespace(global_step=1)}).rewards.count(1.0) == 19
    made.close()
    assert "log_extra('odd')" in capfd.readouterr().err


def test_logged_values_are_plain(pool):
    source = "def one(completions, log_extra, **kwargs):\n"
    source += (
        "    log_extra('v', [kwargs['values'][int(text)] for text in completions])\n    return [1] * len(completions)\n"
    )
    values = [1, 1.5, "x" * 10**6, None, True, 10**30, numpy.float32(0.5), numpy.arange(3), {"a": (1,)}, print, b"x"]
    made = pool(source)
    found = made.score([str(n) for n in range(len(values))], {"values": [*values, "not a column"]}).extra["v"]
    assert found[:2] == [1, 1.5] and found[2] == "x" * 10_000 and found[3:5] == [None, True]
    assert found[5:9] == [str(10**30), 0.5, [0, 1, 2], {"a": [1]}] and all(
        isinstance(value, str) for value in found[9:]
    )


def test_logged_names_and_texts_are_bounded_and_can_be_written(pool):
    source = """
def one(completions, log_extra, log_metric, **kwargs):
    log_extra("\\ud800", ["a\\ud800", {"\\ud800": 1}])
    log_metric("a\\n\\x1b" + "b" * 1000, 1)
    for number in range(1000):
        log_metric(f"m{number}", number)
    return [1.0, 2.0]
"""
    scores = pool(source, scope="batch").score(["a", "b"], {})
    assert scores.failures == [] and scores.extra == {"\ufffd": ["a?", {"?": 1}]}
    assert len(scores.metrics) == 100 and "a \ufffd" + "b" * 97 in scores.metrics


def test_numbers_of_every_kind(pool):
    source = """
import decimal, fractions, numpy
def one(completions, form="list", **kwargs):
    values = [True, 2, 2.5, None, numpy.float32(0.5), numpy.bool_(1), numpy.array(3.0), fractions.Fraction(1, 4),
              decimal.Decimal("0.125"), numpy.array([7])]
    values = [values[int(text)] for text in completions]
    return tuple(values) if form == "tuple" else values
"""
    texts = [str(n) for n in range(10)]
    for form in ("list", "tuple"):
        assert pool(source, {"form": form}).score(texts, {}).rewards == [1, 2, 2.5, None, 0.5, 1, 3, 0.25, 0.125, 7]
    array = "import numpy\ndef one(completions, **kwargs):\n    return numpy.array([float(n) for n in completions])\n"
    assert pool(array).score(texts, {}).rewards == [float(n) for n in range(10)]


ASYNC = """
import asyncio
LOOPS = set()
async def _one(text):
    await asyncio.sleep(600 if text == "hang" else 0.05)
    if text == "raise":
        raise ValueError
    return float(len(LOOPS))
async def one(completions, **kwargs):
    LOOPS.add(id(asyncio.get_running_loop()))
    return await asyncio.gather(*map(_one, completions))
"""


def test_async(pool):
    made = pool(ASYNC, timeout=1.0, workers=1)
    made.score(["a"] * 2, {})
    start = time.monotonic()
    assert made.score(["a"] * 200, {}).rewards == [1.0] * 200
    assert time.monotonic() - start < 5  # 10 one after the other
    completions = ["a"] * 100
    completions[20], completions[60] = "raise", "hang"
    scores = made.score(completions, {})
    assert [(failure.index, failure.kind) for failure in scores.failures] == [(20, "exception"), (60, "timeout")]
    assert scores.rewards.count(1.0) == 98


def test_kwargs_win_and_are_fresh_at_every_call(pool):
    source = "def one(completions, seen, **kwargs):\n    seen.append(1)\n    return [len(seen)] * len(completions)\n"
    made = pool(source, {"seen": []}, workers=1)
    for _ in range(3):
        assert set(made.score(["a"] * 10, {"seen": [1] * 5}).rewards) == {1.0}


def test_start_hook_is_called_once_in_every_worker(pool, tmp_path):
    source = """
import os
STARTED = []
def _start(folder, **kwargs):
    STARTED.append(folder)
    open(os.path.join(folder, f"{os.getpid()}"), "x")
def one(completions, folder, **kwargs):
    return [len(STARTED)] * len(completions)
"""
    (tmp_path / "started").mkdir()
    made = pool(source, {"folder": str(tmp_path / "started")}, workers=1)
    made.start()
    made.start()
    assert len(os.listdir(tmp_path / "started")) == 1
    assert made.score(["a"] * 30, {}).rewards == [1.0] * 30
    assert len(os.listdir(tmp_path / "started")) == 1


def test_output_is_shown_once_and_in_bounds(pool, capfd):
    made = pool(
        "def one(completions, **kwargs):\n    print('seen', kwargs['word'] * 100)\n    return [1.0]\n", workers=1
    )
    for n in range(200):
        made.score(["a"], {"word": str(n % 10)})
    made.close()
    shown = capfd.readouterr().err
    assert shown.startswith("[reward it] seen 00000") and len(shown) < 6000
    assert shown.count("is not shown") == 1 and shown.endswith("is not shown\n")


def test_a_plugin_beside_its_helpers_and_a_dotted_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scores.py").write_text("VALUE = 3\n")  # also a module's name of the pool itself
    (tmp_path / "mine.py").write_text(
        "import os\nfrom scores import VALUE\ndef one(completions, **kwargs):\n"
        "    return [VALUE + os.path.exists('mine.py')] * len(completions)\ndef two(completions, **kwargs): ...\n"
    )
    for path in ("mine.py:one", "mine.one"):
        with RewardPool("it", path) as made:
            assert made.score(["a"], {}).rewards == [4.0]
            assert made.__name__ == made.name == "it"


def test_workers_import_nothing_that_the_plugin_does_not(pool):
    source = """
import sys
NAMES = ("torch", "transformers", "numpy", "asyncio", "concurrent.futures")
def one(completions, **kwargs):
    return [sum(name in sys.modules for name in NAMES)] * len(completions)
"""
    assert pool(source).score(["a"], {"trainer_state": State()}).rewards == [0.0]


@pytest.mark.parametrize(
    "limits, key",
    [
        ({"timeout": 0}, "timeout"), ({"timeout": float("nan")}, "timeout"), ({"timeout": float("inf")}, "timeout"),
        ({"workers": 0}, "workers"), ({"memory_gb": 0}, "memory_gb"), ({"memory_gb": float("inf")}, "memory_gb"),
        ({"scope": "samples"}, "scope"),
    ],
)  # fmt: skip
def test_refused_limits(limits, key):
    with pytest.raises(Refusal) as caught:
        PoolLimits(**limits)
    assert caught.value.key == key


def test_refused_plugins(tmp_path, monkeypatch):
    with pytest.raises(Refusal, match="no file"):
        RewardPool("it", str(tmp_path / "absent.py"))
    with pytest.raises(Refusal, match="sent to a worker"):
        RewardPool("it", "rewards/format.py", {"mode": lambda: 1})
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(Refusal, match="Linux"):
        RewardPool("it", "rewards/format.py")


def test_default_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for ranks, workers in (("1", 8), ("3", 2), ("20", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert default_workers() == workers
