"""The report of a run is written whatever its stages come to, and `stage=report` writes it on demand."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ruyi_rl import execution
from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.html import upkeep
from ruyi_rl.stages import report
from ruyi_rl.validation import validate
from tests.report.made_run import left, made_run


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a pipeline of init and sft in which a stage does as it is told; returns the report's text, "" for none."""

    def make(stage="sft", act=lambda context: None, ends=None):
        def module(name):
            own = name.rpartition(".")[2]

            def run(context):
                (context.folder / "config.json").write_text("{}")
                if own == stage:
                    act(context)
                exits = {"a": {"k": 1, "layers": 2, "parameters": 3}} if own == "init" else {}
                return {"exits": exits}

            return SimpleNamespace(run=run)

        monkeypatch.setattr(execution, "import_module", module)
        monkeypatch.setattr(execution, "quiet_libraries", lambda: None)
        monkeypatch.setattr(execution, "print_result", lambda *rest, **options: None)
        config = RunConfig(stage=StageOptions("sft"), name="x", run_dir=str(tmp_path / "x"))
        if ends is None:
            run_stages(config, [])
        else:
            with pytest.raises(ends):
                run_stages(config, [])
        report = tmp_path / "x" / "report.html"
        return report.read_text() if report.exists() else ""

    return make


def statuses(text):
    return [status for status in ("done", "running", "failed", "interrupted") if f'class="status {status}"' in text]


def test_it_tells_of_every_stage_when_that_has_ended(run):
    seen = []
    text = run(act=lambda context: seen.append((context.folder.parent / "report.html").read_text()))
    assert statuses(seen[0]) == ["done"] and ">sft<" not in seen[0]  # after init
    assert statuses(text) == ["done"] and ">sft/<" in text


@pytest.mark.parametrize(
    "error, ends, status",
    [(ValueError("out <b>of</b> luck"), StageFailed, "failed"), (KeyboardInterrupt(), Interrupted, "interrupted")],
)
def test_it_tells_of_a_stage_that_has_not_come_to_its_end(run, error, ends, status):
    def act(context):
        raise error

    text = run(act=act, ends=ends)
    assert statuses(text) == ["done", status]
    assert ("out &lt;b&gt;of&lt;/b&gt; luck" in text) == (status == "failed")


def test_a_run_whose_report_fails_is_done_all_the_same(run, monkeypatch, capsys):
    def broken(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(upkeep, "write_report", broken)
    assert run() == ""
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("no space left on device") == 2 and "stage=report tries again" in told


@pytest.mark.parametrize("stage, ends", [("init", Interrupted), ("sft", StageFailed)])
def test_a_signal_while_it_is_written_hides_nothing(run, monkeypatch, stage, ends, tmp_path):
    """After init it stops the run before the next stage; after a stage that has failed, that is what is told."""

    def signalled(folder):
        if (folder / stage).is_dir():
            os.kill(os.getpid(), signal.SIGTERM)

    def act(context):
        raise ValueError("out of luck")

    monkeypatch.setattr(upkeep, "write_report", signalled)
    run(act=act, ends=ends)
    assert (tmp_path / "x" / "sft").exists() == (stage == "sft")


def asked(*overrides):
    return to_run_config(compose_config(["stage=report", *overrides]))


def test_the_command_writes_and_prints_it_without_torch(tmp_path):
    made_run(tmp_path / "runs" / "made")
    code = "import sys; from ruyi_rl.__main__ import main; status = main(['stage=report', 'name=made'])"
    command = [sys.executable, "-c", f"{code}; sys.exit(status or 'torch' in sys.modules)"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "runs/made/report.html" and (tmp_path / told.stdout.strip()).is_file()


def test_the_command_tells_a_fault_of_the_page_in_one_message(tmp_path, monkeypatch):
    def broken(folder):
        raise KeyError("no such thing")

    made_run(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(StageFailed, match=r"KeyError: 'no such thing' .*tells where"):
        patched.setattr(report, "write_report", broken)
        report.run(asked(f"run_dir={tmp_path}"))
    assert "in broken" in (tmp_path / "report-error.txt").read_text()
    report.run(asked(f"run_dir={tmp_path}"))
    assert not (tmp_path / "report-error.txt").exists()


def test_what_is_no_run_is_refused(tmp_path):
    for name in ("first", "second"):
        left(tmp_path / name, "init")
    validate(asked(f"run_dir={tmp_path}/first"))
    with pytest.raises(Refusal, match=r"no run .*name=<a run>: first, second; or run_dir"):
        validate(asked(f"run_dir={tmp_path}/third"))
    with pytest.raises(Refusal, match=rf"one stage of a run .*run_dir={tmp_path}/first\)"):
        validate(asked(f"run_dir={tmp_path}/first/init"))
    with pytest.raises(Refusal, match="num_processes.*one process"):
        validate(asked(f"run_dir={tmp_path}/first", "num_processes=2"))
    assert not list(tmp_path.rglob("report.html"))
