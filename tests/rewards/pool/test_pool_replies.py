"""A reply is read wholly, or not at all."""

import math

import pytest

from ruyi_rl.rewards.pool import RewardFailure
from ruyi_rl.rewards.pool.replies import Answer, decoded, read_answer
from ruyi_rl.rewards.pool.values import Failed

GOOD = {
    "rewards": [1.0, None],
    "failures": [[1, "nan", "returned NaN", "a.py:1"]],
    "extra": {"column": [1, "two"]},
    "metrics": {"metric": [1.0, math.inf]},
    "seconds": 0.5,
}


def test_good_ones():
    failures = [RewardFailure(1, "nan", "returned NaN", "a.py:1")]
    assert read_answer(GOOD, 2) == Answer([1.0, None], failures, GOOD["extra"], GOOD["metrics"], 0.5)
    failed = read_answer({"failed": ["exception", "ValueError", "a.py:1"], "seconds": 0.1}, 2)
    assert isinstance(failed, Failed) and failed.args == ("exception", "ValueError", "a.py:1")


@pytest.mark.parametrize(
    "change",
    [
        *({"rewards": value} for value in ([1.0], [1.0, None, 1.0], None, "ab", [1.0, "1"], [True, None], [1, None])),
        *({"rewards": [value, None]} for value in (math.nan, math.inf, 1e300)),
        *({"failures": value} for value in (None, [[]], [1], [[2, "nan", "", ""]], [[0, "nan", "", ""]])),
        *({"failures": value} for value in ([[1, "odd", "", ""]], [[1, [], "", ""]], [[1, "nan", "", ""]] * 2)),
        *({"extra": value} for value in (None, [], {"column": [1]}, {"column": "ab"})),
        *({"metrics": value} for value in (None, {"metric": 1.0}, {"metric": ["1"]})),
        *({"seconds": value} for value in (None, -1.0, math.nan, math.inf, "1")),
        *({"failed": value} for value in (None, [], ["odd", "", ""], ["nan", 1, ""])),
    ],
)
def test_bad_ones(change):
    with pytest.raises(ValueError, match="no reply"):
        read_answer(GOOD | change, 2)


@pytest.mark.parametrize("message", [b"", b"{", b"[1]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_object(message):
    with pytest.raises(ValueError):
        decoded(message)
