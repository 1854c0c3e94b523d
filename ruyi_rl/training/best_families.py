"""`<stage>/best/`: the families of a training at its best evaluations. Imports no torch.

A family is written in `.partial-step-N`, flushed, and then takes its name, `step-N`; `best.json` names it only after
that. It is removed, by way of `.partial-step-N`, only once `best.json` no longer names it. So whenever a kill comes,
every `step-N` is whole, and every one that is named is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ruyi_rl.checkpoint_folder import complete_checkpoints, file_sum, files_of, flush_folder
from ruyi_rl.run_folder import write_json
from ruyi_rl.training.quality import Rates, mean_rate

FOLDER = "best"
FILE = "best.json"
STEP = "step-"
PARTIAL = ".partial-"


class BestFamilies:
    """The folder of one training; all but `family` is rank 0's to call.

    Args:
        folder: `best` beside the trained family.
        checkpoints: folder of the training's checkpoints.
        start: folder of the family that the training starts from: the one at step 0.
    """

    def __init__(self, folder: Path, checkpoints: Path, start: Path):
        self.folder, self.checkpoints, self.start = folder, checkpoints, start
        self._superseded: dict[int, int] = {}  # step of a family -> step since which no exit is at its best there

    def family(self, step: int) -> Path | None:
        """Where the family of a step is; None where it was not kept."""
        place = self.start if step == 0 else self._place(step)
        return place if place.is_dir() else None

    def saving(self, step: int) -> Path:
        """An empty place to write the family of a step in."""
        place = self._partial(step)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def keep(self, step: int) -> None:
        """Gives the family that was written in `saving(step)` its name, which no other has: see `go_back`.

        Raises:
            OSError: the disk does not take it.
        """
        written = self._partial(step)
        for name in files_of(written):
            file_sum(written / name)  # flushes it
        flush_folder(written)
        os.rename(written, self._place(step))
        flush_folder(self.folder)

    def name(self, kept: Mapping[str, Rates], keep_best: str, step: int, last: Path | None = None) -> None:
        """Writes `best.json`, then removes the families that neither it nor a checkpoint names.

        A checkpoint goes on with what was best when it was written, so a family outlives the last one that names it.

        Args:
            kept: exit -> the rates by which its family is kept.
            keep_best: `exit` or `mean`.
            step: of the newest evaluation.
            last: folder of the trained family, where the training is over and `step` its last: no checkpoint counts.
        """
        exits = {
            name: {**vars(rates), "family": self._named(last if last and rates.step == step else rates.step)}
            for name, rates in kept.items()
        }
        mean = {"mean": mean_rate(kept)} if keep_best == "mean" else {}
        write_json(self.folder / FILE, {"keep_best": keep_best, **mean, "exits": exits})
        named = {rates.step for rates in kept.values()}
        saved = [] if last else [int(path.name.rpartition("-")[2]) for path in complete_checkpoints(self.checkpoints)]
        for family in self._steps():
            if family in named:
                self._superseded.pop(family, None)
            elif not any(family <= checkpoint < self._superseded.setdefault(family, step) for checkpoint in saved):
                self._remove(family)

    def go_back(self, kept: Mapping[str, Rates], keep_best: str, step: int) -> None:
        """What was kept up to a step, where a training goes on from: what came later will come again."""
        for unfinished in self.folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(unfinished)
        if self.folder.is_dir():
            self.name(kept, keep_best, step)

    def _place(self, step: int) -> Path:
        return self.folder / f"{STEP}{step}"

    def _partial(self, step: int) -> Path:
        return self.folder / f"{PARTIAL}{STEP}{step}"

    def _remove(self, step: int) -> None:
        os.rename(self._place(step), self._partial(step))
        shutil.rmtree(self._partial(step))

    def _named(self, family: int | Path) -> str | None:
        """A family as a path from `best.json`."""
        place = family if isinstance(family, Path) else self.family(family)
        return None if place is None else os.path.relpath(place, self.folder)

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix(STEP)) for path in self.folder.glob(f"{STEP}*"))
