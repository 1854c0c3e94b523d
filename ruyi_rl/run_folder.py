"""What a stage leaves on disk, and what is read from it before the stage runs again. Imports no torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from socket import gethostname
from typing import Any

from ruyi_rl import __version__
from ruyi_rl.checkpoint_folder import complete_checkpoints, flush_folder
from ruyi_rl.processes import has_ended, holders
from ruyi_rl.refusal import Refusal

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "datasets", "math-verify", "vllm")
PHASES = ("stage_one", "stage_two")
"""Folders inside a stage's, in order, where its training has two phases."""
TRAINED = ("trained", "trained_one", "trained_two", "recovered")
"""Keys of a manifest's progress that say that a training of the stage is done."""
LOCK_SECONDS = 30.0
"""How long what a killed run has left behind may keep its folder."""
REPORT = "report.html"
"""File of a run's folder, see `ruyi_rl.report.html`."""
RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"


@dataclass
class Manifest:
    """`manifest.json` of a stage folder."""

    stage: str
    status: str
    """`running`, `done`, `failed` or `interrupted`; `running` without a live process means killed."""
    config_hash: str
    """Hash of `decided_by`."""
    decided_by: dict[str, Any]
    """Config key -> value, of all that decides the stage's result, the stages before it included."""
    input: str | None
    """Folder of the family that the stage started from."""
    input_hash: str | None
    """Which family that was, see `fingerprint`."""
    seed: int
    world_size: int
    """Ranks that the training began on, whose batches stay those of the stage."""
    deepspeed: str
    versions: dict[str, str]
    started: str
    """ISO 8601, UTC: the first start."""
    finished: str | None = None
    seconds: float = 0.0
    """Wall seconds of all attempts together."""
    progress: dict[str, Any] = field(default_factory=dict)
    """Results that a resumed stage need not compute again."""
    message: str | None = None
    """Why the stage failed."""


class StageFolder:
    """`runs/<name>/<stage>/`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none, or where another version wrote one that this one cannot read."""
        try:
            stored = json.loads((self.path / "manifest.json").read_text())
            return Manifest(**{f.name: stored[f.name] for f in fields(Manifest)})
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
            return None

    def write_manifest(self, manifest: Manifest) -> None:
        write_json(self.path / "manifest.json", asdict(manifest))

    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints of every phase, oldest first (see `complete_checkpoints`)."""
        folders = [self.path, *(self.path / phase for phase in PHASES)]
        return [checkpoint for folder in folders for checkpoint in complete_checkpoints(folder)]

    def holds_family(self) -> bool:
        return (self.path / "config.json").is_file()

    def holds_work(self, manifest: Manifest) -> bool:
        """Whether anything would be lost if the stage started over."""
        return manifest.status == DONE or bool(manifest.progress) or bool(self.checkpoints())

    def began_on(self) -> int | None:
        """Ranks that the stage's training began on; None where it has not begun."""
        manifest = self.manifest()
        if manifest is None or not (self.checkpoints() or set(TRAINED) & set(manifest.progress)):
            return None
        return manifest.world_size

    def clear(self) -> None:
        """Deletes the folder.

        Raises:
            Refusal: it holds something, but no manifest: no stage made it.
        """
        if not self.path.exists():
            return
        if any(self.path.iterdir()) and not (self.path / "manifest.json").exists():
            raise Refusal("run_dir", f"{self.path} holds files that no stage wrote", "another name or run_dir")
        shutil.rmtree(self.path)


def write_text(path: Path, text: str) -> None:
    """Writes `path` so that a reader, or a kill in between, sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; lists are leaves, empty dicts vanish. Values are as JSON gives them back."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = json.loads(json.dumps(value, default=str))
    return leaves


def config_hash(decided_by: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any key or value."""
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key old → new` for every key whose value differs."""

    def shown(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "unset"

    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key} {shown(old, key)} → {shown(new, key)}"
        for key in keys
        if (key in old) != (key in new) or old.get(key) != new.get(key)
    ]


def fingerprint(folder: Path) -> str:
    """Identity of a family folder: its stage's config and first start, or its config and its weight files' sizes and
    times. What one config makes twice need not be the same: devices, ranks and libraries have a part in it."""
    manifest = StageFolder(folder).manifest()
    if manifest is not None:
        return config_hash({"config": manifest.config_hash, "started": manifest.started})
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a result."""
    found = {"ruyi_rl": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def require_writable(folder: Path) -> None:
    """Makes `folder`.

    Raises:
        Refusal: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refusal(
            "run_dir", f"cannot write in {folder}: {error.strerror}", "a folder that can be written"
        ) from None


@contextmanager
def locked(folder: Path, announce: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Holds `folder` for this process; the system lets go of it however the process ends.

    A killed process may have left some that hold it until they notice: for these it waits `LOCK_SECONDS`.

    Args:
        announce: called with a line for the user when it begins to wait.

    Raises:
        Refusal: another process holds it.
    """
    path = folder / ".lock"
    with open(path, "a+") as file:
        deadline = None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                pid, _, host = file.read().partition(" ")
                dead = pid.isdigit() and host == gethostname() and has_ended(int(pid))
                if deadline is None and dead:
                    announce(f"waiting for what process {pid}, which has ended, left behind in {folder}")
                deadline = deadline or time.monotonic() + LOCK_SECONDS
                if not dead or time.monotonic() > deadline:
                    raise _in_use(path, pid, host, dead) from None
                time.sleep(0.1)
            except OSError:
                break  # Some network file systems have no locks; a run there is not worth refusing.
        file.truncate(0)
        file.write(f"{os.getpid()} {gethostname()}")
        file.flush()
        yield


def _in_use(path: Path, pid: str, host: str, dead: bool) -> Refusal:
    """The refusal of a folder whose lock names process `pid` on `host`."""
    holder = f"process {pid or '?'}" + ("" if host in ("", gethostname()) else f" on {host}")
    if not dead:
        return Refusal("name", f"{path.parent} is in use by {holder}", "wait for it, or another name")
    left = [each for each in holders(path) if each != os.getpid()]
    return Refusal("name", f"{path.parent} is in use by what {holder} left: {left}", "end them, or another name")
