"""Chunks, deadlines and workers from what has been measured."""

import itertools

from ruyi_rl.rewards.pool.pace import GROWTH, LARGEST, SHORT_DEADLINE, TARGET_SECONDS, Pace


def measured(seconds, timeout=10.0, **fields):
    """A pace at which a sample takes so long."""
    pace = Pace(timeout, **fields)
    pace.started(0.1)
    for _ in range(10):
        size = pace.chunk(10_000, 1)
        pace.answered(size, seconds if pace.concurrent else seconds * size, fresh=False)
    return pace


def test_chunks_grow_to_the_target_and_not_beyond():
    pace, sizes = Pace(10.0), []
    for _ in range(6):
        sizes.append(pace.chunk(10_000, 4))
        pace.answered(sizes[-1], 0.002 * sizes[-1], fresh=False)
    assert sizes == [1, 4, 16, 64, TARGET_SECONDS / 0.002, TARGET_SECONDS / 0.002]
    assert measured(1e-6).chunk(10_000, 1) == LARGEST
    assert measured(3.0).chunk(10_000, 1) == 1


def test_chunks_leave_work_for_all_and_are_worth_sending():
    assert measured(0.01).chunk(40, 4) == 5
    assert measured(0.01).chunk(3, 4) == 1
    assert measured(1e-5).chunk(40, 4) >= 40


def test_a_kill_makes_chunks_smaller():
    pace = measured(1e-6)
    for _ in range(3):
        pace.killed()
    assert pace.chunk(10_000, 1) == LARGEST // GROWTH**2
    for _ in range(9):
        pace.killed()
    assert pace.chunk(10_000, 1) == GROWTH


def test_deadlines():
    cases = itertools.product([1e-6, 0.01, 0.2, 3.0, 9.0], [1, 2, 16, 256], [True, False])
    for seconds, samples, fresh in cases:
        for pace in (measured(seconds), measured(seconds, concurrent=True), Pace(10.0)):
            assert pace.deadline(1, 1, fresh) == 10.0
            for units in (1, samples):
                assert pace.deadline(samples, units, fresh) <= 10.0 * samples
            assert pace.deadline(samples, 1, fresh) >= 10.0
            assert pace.deadline(samples, samples, fresh) >= min(SHORT_DEADLINE, 10.0 * samples)
        pace = measured(seconds)
        assert pace.deadline(samples, samples, fresh) >= min(2 * seconds * samples, 10.0 * samples)
        if samples > 1 and seconds * samples < 0.2:
            assert pace.deadline(samples, samples, fresh=False) < 2.0


def test_a_first_call_that_imports_much_is_no_measure_but_allowed_for():
    pace = Pace(10.0)
    pace.answered(1, 5.0, fresh=True)
    assert pace.chunk(100, 1) == 1 and not pace.pays(100, 1, 0.0)
    pace.answered(1, 0.001, fresh=False)
    assert pace.chunk(100, 1) == GROWTH
    pace.answered(4, 0.004, fresh=False)
    assert pace.deadline(16, 16, fresh=False) < 2.0
    assert pace.deadline(16, 16, fresh=True) > 10.0


def test_workers_are_added_where_they_spare_more_than_they_cost():
    assert not measured(1e-5).pays(1000, 1, 0.0)
    assert measured(0.01).pays(1000, 1, 0.0) and measured(0.01).pays(1000, 3, 0.0)
    assert not measured(0.01).pays(10, 1, 0.0) and not measured(0.01).pays(0, 1, 0.0)
    again = measured(0.01)
    for _ in range(40):
        again.missed(0.1, 1)
    assert again.pays(10, 1, 0.0)  # too small a batch, but it has come often
    again.recruited()
    assert not again.pays(10, 1, 0.0)
    assert measured(1e-5).pays(1000, 1, 0.5)  # a call that has taken long already


def test_concurrent_samples_go_together():
    pace = measured(2.0, concurrent=True)
    assert pace.chunk(200, 1) == 200
    assert pace.deadline(200, 200, fresh=False) < 20.0
