"""How to run a program of a language: the seam for others than Python."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruyi_rl.refusal import Refusal, nearest


@dataclass(frozen=True)
class Language:
    """What a sandbox must show and start for one language.

    Attributes:
        visible: gives the host's files and folders that must be seen, read-only, by their own paths.
        command: gives the command that starts the resident: the interpreter with its options, up to its code.
    """

    visible: Callable[[], list[Path]]
    command: Callable[[], list[str]]


def _interpreter() -> Path:
    return Path(os.path.realpath(sys.executable))


def _python_files() -> list[Path]:
    base = Path(sys.base_prefix)
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", base / "lib", base / "lib64"]
    return [*(Path(path) for path in wanted), _interpreter()]


def _python_command() -> list[str]:
    # Not -I: it would ignore PYTHONHASHSEED. -s -S -P leave out what else it leaves out; the environment is our own.
    return [str(_interpreter()), "-s", "-S", "-P", "-B", "-X", "utf8"]


LANGUAGES = {"python": Language(_python_files, _python_command)}


def language(name: str) -> Language:
    """The language of that name.

    Raises:
        Refusal: it is not known.
    """
    if name not in LANGUAGES:
        raise Refusal("language", f"{name!r} cannot be run", nearest(name, LANGUAGES))
    return LANGUAGES[name]
