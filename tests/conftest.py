"""What every test starts from: quiet, offline, one thread, seeded."""

import gc
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test module imports torch or transformers, which read these once; processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    DO_NOT_TRACK="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    MPLBACKEND="Agg",
)

REPO_ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    freeze_modules()
    seed()


def freeze_modules() -> None:
    """Takes what was imported out of the garbage collector's sight: a collection takes half a second for it alone.

    Trainers and engines ask for a collection dozens of times in a run. Again after many further modules, as vLLM's.
    """
    if len(sys.modules) >= freeze_modules.modules + 300:
        gc.collect()
        gc.freeze()
        freeze_modules.modules = len(sys.modules)


freeze_modules.modules = 0


def pytest_sessionfinish() -> None:
    """Else what is frozen would be reported as leaked at the interpreter's end."""
    gc.unfreeze()


def seed() -> None:
    """Before each test's fixtures, so that no result depends on which tests ran before on the same worker."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    # A test that needs no torch must not wait for its import; a torch imported later starts from a seed of its own.
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml, conf/ and rewards/."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real rows beside the repository; skips where it is absent."""
    folder = REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real rows at {folder}")
    return folder


@pytest.fixture(scope="session")
def confinable() -> None:
    """Skips a test that confines programs where bubblewrap cannot run at all; a defect of ours must fail it instead."""
    if problem := bubblewrap_problem():
        pytest.skip(problem)
    from ruyi_rl.rewards.sandbox import SandboxOptions, unconfinable

    assert unconfinable(SandboxOptions()) is None


def bubblewrap_problem() -> str:
    """Why bubblewrap cannot make namespaces here, or ""; told without our code."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    user = ["--unshare-user"] if os.geteuid() else []
    command = ["bwrap", *user, "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    answer = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    return f"bubblewrap cannot run here: {answer.stderr.strip()}" if answer.returncode else ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; skips where none can be mounted."""
    place = tmp_path / "small-disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)
