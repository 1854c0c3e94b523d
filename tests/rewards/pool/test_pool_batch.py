"""A batch cut into chunks, and put together again, without a worker."""

import pickle
import random

import pytest

from ruyi_rl.rewards.pool import RewardFailure
from ruyi_rl.rewards.pool.batch import PARTS, Batch, units
from ruyi_rl.rewards.pool.replies import Answer
from ruyi_rl.rewards.pool.values import Failed

BAD = {3: "crash", 17: "timeout", 18: "exception", 99: "memory"}


def score(batch, chunk):
    """What a worker would answer; a chunk with a bad sample fails as that does."""
    indices = pickle.loads(pickle.loads(batch.message(chunk, True))["columns"]["completions"])
    assert indices == chunk.indices
    bad = [index for index in indices if index in BAD]
    if bad:
        batch.failed(chunk, Failed(BAD[bad[0]], "bad", "file.py:1"))
        return
    batch.answered(
        chunk,
        Answer(
            rewards=[None if index % 10 == 5 else index / 2 for index in indices],
            failures=[RewardFailure(at, "nan", "NaN", "") for at, index in enumerate(indices) if index % 10 == 5],
            extra={"index": indices},
            metrics={"first": [float(indices[0])]},
            seconds=0.0,
        ),
    )


def test_any_order_of_answers_gives_the_same_scores():
    for seed in range(20):
        check_scores(random.Random(seed))


def check_scores(draw):
    batch, held = Batch(list(range(100)), {}, units(100, "sample", None)), []
    while not batch.finished:
        while chunk := batch.take(draw.randint(1, 60)):
            held.append(chunk)
        score(batch, held.pop(draw.randrange(len(held))))
    batch.finish()
    scores = batch.future.result()
    kinds = {index: "nan" for index in range(5, 100, 10)} | BAD
    assert {failure.index: failure.kind for failure in scores.failures} == kinds
    assert [failure.index for failure in scores.failures] == sorted(kinds)
    assert scores.rewards == [None if index in kinds else index / 2 for index in range(100)]
    assert scores.extra["index"] == [None if index in BAD else index for index in range(100)]
    assert scores.metrics["first"] == sorted(scores.metrics["first"])


def test_isolating_one_sample_takes_few_calls():
    batch, calls, killed = Batch(list(range(256)), {}, units(256, "sample", None)), 0, 0
    while not batch.finished:
        chunk = batch.take(256)
        calls += 1
        if 200 in chunk.indices:
            killed += 1
            batch.failed(chunk, Failed("timeout", ""))
        else:
            batch.answered(chunk, Answer([1.0] * len(chunk.indices), [], {}, {}, 0.0))
    assert killed == 3 and calls == 1 + 2 * PARTS


def test_a_single_unit_is_tried_again_once_where_asked():
    batch = Batch(["a"], {}, units(1, "sample", None))
    batch.failed(batch.take(1), Failed("crash", ""), again=True)
    assert batch.waiting == 1 and not batch.finished
    chunk = batch.take(1)
    assert chunk.retried
    batch.failed(chunk, Failed("crash", ""))
    assert batch.finished


@pytest.mark.parametrize(
    "scope, groups, expected",
    [
        ("sample", None, [(0,), (1,), (2,), (3,)]),
        ("group", ["a", "b", "a", None], [(0, 2), (1,), (3,)]),
        ("batch", None, [(0, 1, 2, 3)]),
    ],
)
def test_units(scope, groups, expected):
    assert units(4, scope, groups) == expected
    assert units(0, scope, []) == []


def test_chunks_hold_whole_groups():
    batch = Batch(list(range(12)), {}, units(12, "group", [n % 3 for n in range(12)]))
    assert [len(batch.take(5).units) for _ in range(2)] == [2, 1]
    assert batch.take(5) is None and batch.waiting == 0
