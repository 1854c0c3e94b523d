"""Programs that try to get out, or to bring a sandbox down: as this user and, where that is root, an ordinary one."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import escapes
import pytest

import ruyi_rl

PACKAGE = Path(ruyi_rl.__file__).parent
NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 11))"
BARE = ("bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true")
MODES = pytest.mark.parametrize("mode", ["cold", "warm"])


def wrong(found):
    return {name: problem for name, problem in found.items() if problem}


@MODES
def test_no_program_escapes(confinable, mode):
    assert wrong(escapes.outcomes(replace(escapes.LIMITS, warm=mode == "warm"))) == {}


@pytest.fixture(scope="module")
def as_nobody():
    """The start of a command that runs a Python as an ordinary user, and a folder with the package that it can read."""
    if os.geteuid():
        pytest.skip("this user is an ordinary one: the other test is this one")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing, so that root cannot become an ordinary user here")
    nobody = pwd.getpwnam("nobody")
    become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "env"]
    if subprocess.run([*become, *BARE], cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("ordinary users may not make namespaces here")
    for python in filter(
        os.path.exists, (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3")
    ):
        if (
            subprocess.run([*become, python, "-c", NEW_ENOUGH], cwd="/", capture_output=True, check=False).returncode
            == 0
        ):
            break
    else:
        pytest.skip("no Python 3.11 or newer that an ordinary user may start")
    # Not in tmp_path, which is for root's eyes only.
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "ruyi_rl"
        shutil.copytree(PACKAGE / "rewards" / "sandbox", package / "rewards" / "sandbox")
        shutil.copy(PACKAGE / "refusal.py", package)
        shutil.copy(escapes.__file__, folder)
        os.chmod(folder, 0o755)
        yield [*become, f"PYTHONPATH={folder}", "PYTHONDONTWRITEBYTECODE=1", python], Path(folder)


@MODES
def test_no_program_of_an_ordinary_user_escapes(confinable, as_nobody, mode):
    python, folder = as_nobody
    command = [*python, str(folder / "escapes.py"), mode]
    answer = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert len(found) > 60
    assert wrong(found) == {}
