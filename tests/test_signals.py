import os
import signal
import sys
import time

import pytest

from ruyi_rl import signals
from ruyi_rl.signals import StopNow, StopSignal


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_outside_a_training_the_first_signal_stops_where_it_is(number, status):
    with StopSignal() as stop, pytest.raises(StopNow):
        send(number)
        pytest.fail("went on")
    assert stop.status == status


def test_in_a_training_the_first_signal_is_a_request_that_ends_it():
    lines, steps = [], []
    with StopSignal(lines.append) as stop, pytest.raises(StopNow), stop.gently():
        send(signal.SIGTERM)
        steps.append("finished")
        assert stop.requested
    assert steps == ["finished"] and "SIGTERM" in lines[0] and stop.status == 143


def test_a_second_signal_stops_a_training_at_once(monkeypatch):
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    with StopSignal() as stop, pytest.raises(StopNow), stop.gently():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("went on")


def test_the_echo_of_a_signal_is_no_second_one():
    reached = False
    with StopSignal() as stop, pytest.raises(StopNow), stop.gently():
        send(signal.SIGINT)
        send(signal.SIGINT)
        reached = True
    assert reached


def test_no_library_can_swallow_the_stop():
    assert not issubclass(StopNow, Exception)


def test_the_handlers_before_it_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_in_a_training_is_not_replaced_by_the_stop():
    with StopSignal() as stop, pytest.raises(ValueError, match="real cause"), stop.gently():
        send(signal.SIGTERM)
        raise ValueError("real cause")


class StopsInFinaliser:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_stop_that_a_finaliser_swallows_is_tried_again(capfd):
    hook = sys.unraisablehook
    with pytest.raises(StopNow), StopSignal() as stop:
        StopsInFinaliser()
        time.sleep(10)
    assert stop.status == 143 and sys.unraisablehook is hook
    assert "Traceback" not in capfd.readouterr().err
