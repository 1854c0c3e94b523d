import os
import sys
from pathlib import Path

import pytest

from ruyi_rl.cli.sweep import local


@pytest.fixture
def fake_jobs(monkeypatch, tmp_path):
    """The jobs of sweeps are processes of `fake_job`, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    here = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))
    monkeypatch.setattr(local.Launch, "command", lambda self, job: [sys.executable, "-m", "fake_job", *job.overrides])
