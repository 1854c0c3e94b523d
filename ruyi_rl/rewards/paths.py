"""Where a reward function is: a plugin file or a dotted name. Nothing is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ruyi_rl


@dataclass(frozen=True)
class RewardPath:
    """A parsed `path`: a file and perhaps a function in it, or else a module and an attribute."""

    file: str | None
    module: str | None
    function: str | None

    @classmethod
    def parse(cls, path: str) -> RewardPath:
        """`file.py`, `file.py:function` or `package.module.function`."""
        file, _, function = path.rpartition(":") if path.rpartition(":")[0].endswith(".py") else (path, "", "")
        if file.endswith(".py"):
            return cls(file, None, function or None)
        module, _, function = path.rpartition(".")
        return cls(None, module or None, function or None)

    def find(self) -> Path | None:
        """The plugin file: from the working folder, then among the shipped plugins; None where it is in neither."""
        return next((place.resolve() for place in self.places() if place.is_file()), None)

    def places(self) -> list[Path]:
        """Where the file is looked for, in order."""
        given = Path(self.file).expanduser()
        if given.is_absolute():
            return [given]
        inside = Path(*given.parts[1:]) if given.parts[0] == "rewards" and len(given.parts) > 1 else given
        return [Path.cwd() / given, *(folder / inside for folder in shipped_folders())]


def shipped_folders() -> list[Path]:
    """The folders that the shipped plugins may be in: inside the wheel, or beside the package in a checkout."""
    package = Path(ruyi_rl.__file__).parent
    return [package / "plugins", package.parent / "rewards"]


def shipped_plugins() -> list[str]:
    """`rewards/<name>.py` for every shipped plugin."""
    return sorted({f"rewards/{file.name}" for folder in shipped_folders() for file in folder.glob("[!_]*.py")})
