"""Whether a folder can be written, found out without leaving anything behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ruyi_rl.refusal import Refusal


def require_folder(key: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        # The answer of os.access is not that of the file system for root, nor on a read-only or virtual one.
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise Refusal(key, f"cannot write in {existing}: {error.strerror}", "a folder that can be written") from None
