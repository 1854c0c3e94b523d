"""Where hosts do not share a disk, each keeps a copy of the run folder: who keeps one, and how copies become the same.

A copy is looked after by one rank of its host, its *keeper*. What rank 0 alone writes is mirrored to the other copies;
what every rank writes by itself, such as its shard of a checkpoint, stays where it was written. Imports no torch.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.file_transfer import attempt, files_in, receive, send
from ruyi_rl.heartbeats import FOLDER as HEARTBEATS

EACH_RANKS_OWN = ("rng_state_*.pth", "*zero_pp_rank_*", "run_state/rank-*")
"""Files in a checkpoint that each rank writes by itself, as patterns (`fnmatch`) of the ends of their paths."""
NOT_MIRRORED = ("checkpoint-*", "broken-checkpoint-*", ".saving-*", HEARTBEATS, "error*.txt", "stacks-rank-*.txt")
"""What is left out when a stage's folder is mirrored: a checkpoint is mirrored when it is written."""


@dataclass(frozen=True)
class FolderCopies:
    """The copies of the run folder, as one rank sees them; the default: one process, one folder."""

    seen: tuple[int, ...] = (0,)
    """(ranks,): for each rank the keeper of the copy that it sees; of rank 0's copy that is rank 0."""
    rank: int = 0
    """This process's rank."""
    group: Any = None
    """The keepers' process group, for bytes in the processor's memory; None with one copy."""
    beat: Callable[[], None] = lambda: None
    """Called with every chunk that is mirrored."""

    @property
    def keepers(self) -> list[int]:
        """Ranks that look after a copy, ascending; rank 0 first."""
        return sorted(set(self.seen))

    @property
    def shared(self) -> bool:
        """Whether all ranks see one folder."""
        return len(self.keepers) == 1

    @property
    def keeps(self) -> bool:
        """Whether this rank makes, renames and removes the files that belong to no rank in the copy that it sees."""
        return self.rank in self.seen

    @property
    def first(self) -> int:
        """The keeper of the copy that this rank sees."""
        return self.seen[self.rank]

    @property
    def beside(self) -> list[int]:
        """The ranks that see this copy, ascending, this one included."""
        return [rank for rank, keeper in enumerate(self.seen) if keeper == self.first]

    def mirror(self, path: Path, source: int = 0, leave: Sequence[str] = EACH_RANKS_OWN) -> list[str]:
        """Gives every copy what the source's holds of a file or folder; every rank calls it, and all leave together.

        A file of the same size and time of change is taken for the same, as rsync does. Files that only another copy
        holds stay. A file takes its name when it is whole on the disk.

        Args:
            path: this rank's own, in the run folder; nothing happens where the source has nothing there.
            source: keeper whose copy is taken.
            leave: patterns (`fnmatch`) of the ends of paths, files' or folders', that are left out.

        Returns:
            The paths that were sent, relative to `path`; `.` for a file.

        Raises:
            OSError: on every rank, where one could not read or write, or a file did not arrive as it was sent.
        """
        if self.shared:
            return []
        sent, problem = self._mirror(path, source, leave) if self.keeps else ([], None)
        problems = [found for found in ranks.gathered(problem) if found]
        if problems:
            raise OSError(problems[0])
        return sent

    def _mirror(self, path: Path, source: int, leave: Sequence[str]) -> tuple[list[str], str | None]:
        import torch.distributed as dist

        def shared(value: Any) -> list[Any]:
            values: list[Any] = [None] * len(self.keepers)
            dist.all_gather_object(values, value, group=self.group)
            return values

        mine, problem = attempt(lambda: files_in(path, leave))
        listed, problems = zip(*shared((mine or {}, problem)))
        wanted = listed[self.keepers.index(source)]
        lacking = sorted(name for name, file in wanted.items() if any(files.get(name) != file for files in listed))
        problem = next(filter(None, problems), None)
        for name in lacking if problem is None else ():
            place = path / name
            if self.rank == source:
                problem = send(place, wanted[name], source, self.group, self.beat)
            else:
                same = listed[self.keepers.index(self.rank)].get(name) == wanted[name]
                problem = receive(None if same else place, wanted[name], source, self.group, self.beat)
            if problem := next(filter(None, shared(problem)), None):
                break
        return lacking, problem


def find_copies(folder: Path) -> FolderCopies:
    """Finds out which ranks see the same folder; every rank calls it, after it has made the folder on its host.

    The first rank of each host writes a file there, and each rank looks for all of them: so the answer does not hang
    on host names, mounts or what a file system calls itself.
    """
    if ranks.host_count() == 1:
        return FolderCopies((0,) * ranks.world_size(), ranks.rank())
    token = ranks.from_rank_zero(uuid.uuid4().hex)
    writers = [rank for rank, local in enumerate(ranks.gathered(ranks.local_rank())) if local == 0]
    own = _token(folder, token, ranks.rank())
    if ranks.rank() in writers:
        own.touch()
    ranks.barrier()
    # By their names, since a network file system may answer a listing from before.
    visible = [rank for rank in writers if _token(folder, token, rank).exists()]
    seen = tuple(ranks.gathered(min(visible, default=ranks.rank())))
    own.unlink(missing_ok=True)
    keepers = sorted(set(seen))
    return FolderCopies(seen, ranks.rank(), ranks.group(keepers) if len(keepers) > 1 else None)


def _token(folder: Path, token: str, rank: int) -> Path:
    return folder / f".seen-{token}-{rank}"
