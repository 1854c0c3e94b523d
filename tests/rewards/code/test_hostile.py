import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hostile_programs import KINDS, OPEN, read_programs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")]
ROOT = Path(__file__).parents[3]
# Far more than the limit and the second that a free machine needs: others run beside this test.
LATE = 20.0


def run(mode, start, user=None):
    """What the hostile programs did, run under a user."""
    python, path = sys.executable, os.pathsep.join([str(ROOT), *(folder for folder in sys.path if folder)])
    change = {}
    with tempfile.TemporaryDirectory() as folder:
        if user:
            entry = pwd.getpwnam(user)
            change = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            python = interpreter_for(path, change)
        command = [python, str(Path(__file__).parent / "hostile_run.py"), mode, start, folder]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HOME": folder}
        settings = {"env": environment, "cwd": folder, "timeout": 300} | change
        done = subprocess.run(command, check=False, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def interpreter_for(path, change):
    """An interpreter that the user may run and that has what we need; skips where there is none."""
    for python in dict.fromkeys([sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")]):
        command = [python or "", "-c", "import psutil, ruyi_rl.rewards.code"]
        settings = {"env": {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, "cwd": "/", "capture_output": True}
        try:
            if subprocess.run(command, check=False, **settings, **change).returncode == 0:
                return python
        except (PermissionError, FileNotFoundError):
            continue
    pytest.skip("no interpreter here that an ordinary user may run")


def test_there_are_enough_of_them():
    assert sum(len(read_programs(kind)) for kind in KINDS) >= 120


@pytest.mark.parametrize("user, start", [(None, "warm"), ("nobody", "cold")])
def test_no_breach_no_forged_pass_nothing_left(confinable, user, start):
    if user and os.geteuid() != 0:
        pytest.skip("only root can become another user; the other run was an ordinary user's")
    found = run("bubblewrap", start, user)
    assert found["leftovers"] == [] and found["changed"] == [] and found["kept"]
    for result in found["results"]:
        assert result["next"] == "passed", result
        assert result["seconds"] < LATE, result
        if result["kind"] == "disturbers":
            assert result["reason"] == "passed", result
        else:
            assert result["reason"] not in ("passed", "broken", "bad_tests", "no_tests", "no_program"), result
        if result["allowed"]:
            assert result["reason"] in result["allowed"], result


def test_the_same_leaks_without_confinement():
    """The programs would find the secret: it is the sandbox that keeps it."""
    found = {result["name"]: result["reason"] for result in run("none", "cold")["results"]}
    assert found == dict.fromkeys(OPEN, "passed")
