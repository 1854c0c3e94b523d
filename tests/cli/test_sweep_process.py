"""One job's process: its status, its log, its message, its signals."""

import os
import signal
import sys

import pytest

from ruyi_rl.cli.sweep.process import SweepStop, last_line, last_message, outcome, run_job


def run(code, log, stop=None, **environment):
    return run_job([sys.executable, "-c", code], log, environment, stop or SweepStop())


def test_status_and_output(tmp_path):
    log = tmp_path / "log"
    assert run("import os, sys; print('one', os.environ['X']); sys.exit(3)", log, X="y") == 3
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", log) == 137
    assert log.read_text() == "one y\n"


def test_a_first_signal_reaches_the_job_and_a_third_kills_it(tmp_path):
    code = (
        "import os, signal, time\n"
        "caught = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: caught.append(1))\n"
        "for count in (1, 2):\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n"
        "    while len(caught) < count: time.sleep(0.01)\n"
        "    print('caught', count, flush=True)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    told = []
    with SweepStop(told.append) as stop:
        assert run(code, tmp_path / "log", stop) == 137
    assert (tmp_path / "log").read_text() == "caught 1\ncaught 2\n"
    assert stop.number == signal.SIGTERM and len(told) == 1
    assert signal.getsignal(signal.SIGTERM) != stop._receive


@pytest.mark.parametrize(
    ("status", "word"),
    [(0, "done"), (1, "failed"), (2, "failed"), (130, "interrupted"), (143, "interrupted"), (137, "killed")],
)
def test_what_a_status_means(status, word):
    assert outcome(status) == word


def test_why_a_job_ended(tmp_path):
    log = tmp_path / "log"
    log.write_text("ruyi_rl: of the attempt before\n")
    start = log.stat().st_size
    log.open("a").write("sft 3/9\nruyi_rl: sft failed: no rows\nThe traceback is in error.txt.\n")
    assert last_message(log, start, 1) == "sft failed: no rows"
    assert last_message(log, start, 0) is None
    assert last_message(log, start, 137).startswith("SIGKILL")
    assert last_message(log, log.stat().st_size, 1) == "said nothing"
    log.open("a").write("Traceback\nKeyError: 'x'\n")
    assert last_message(log, log.stat().st_size - len("KeyError: 'x'\n"), 1) == "KeyError: 'x'"
    assert last_line(log) == "KeyError: 'x'"
    log.open("a").write("sft ─────\n└──┘\n\n")
    assert last_line(log) == "sft" and last_line(tmp_path / "none") == ""
    assert os.environ.get("RUYI_RL_SWEEP") is None
