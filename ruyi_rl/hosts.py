"""What the hosts of a run agree on before it begins: one configuration, and what lies in their run folders.

Rank 0's answer counts; what another host has and rank 0 lacks is brought to it first. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import Step, Work, pending
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import DONE, differences, require_writable, write_json
from ruyi_rl.shared_folder import NOT_MIRRORED, FolderCopies, find_copies

PLACE = ".ranks.json"
"""In a run folder that hosts do not share: the ranks that wrote this copy."""

BY_TIMES = ("start_from", "files")
"""What decides a stage and need not be equal on every host."""


def meet(run: Path) -> FolderCopies:
    """Makes the run folder on every host and finds out which hosts share it; every rank calls it.

    Raises:
        Refusal: a host cannot write there.
    """
    ranks.everywhere(lambda: require_writable(run))
    return find_copies(run)


def agree(copies: FolderCopies, run: Path, found: Sequence[Step], fresh: bool) -> list[Step]:
    """This rank's steps by rank 0's configuration, once every host has the finished stages of any; every rank calls it.

    Args:
        run: the run folder.
        found: this rank's steps.
        fresh: whether the last stage starts over, so that its checkpoints do not matter.

    Raises:
        Refusal: a host has another configuration, or not its part of an interrupted stage's checkpoints.
        OSError: a stage could not be mirrored.
    """
    decided = ranks.from_rank_zero([step.decided_by for step in found])
    ranks.everywhere(lambda: _require_same_config(found, decided))
    agreed = [replace(step, decided_by=decided_by) for step, decided_by in zip(found, decided)]
    if copies.shared:
        return agreed
    for step in agreed:
        holders = [rank for rank, holds in enumerate(ranks.gathered(copies.keeps and _done(step))) if holds]
        if holders:
            copies.mirror(step.folder.path, source=holders[0], leave=NOT_MIRRORED)
    interrupted = [step for step in agreed if any(ranks.gathered(_interrupted(step)))]
    for step in interrupted if not fresh else interrupted[:-1]:
        ranks.everywhere(lambda step=step: _require_own_part(copies, run, step))
    if copies.keeps:
        write_json(run / PLACE, {"ranks": copies.beside, "world_size": ranks.world_size()})
    return agreed


def pending_on_rank_zero(found: Sequence[Step], config: RunConfig) -> list[Work]:
    """What has to run, as rank 0 sees it, in this rank's folders; every rank calls it.

    Raises:
        Refusal: on every rank, see `ruyi_rl.pipeline.pending`.
    """
    asked = ranks.on_rank_zero(lambda: [(work.step.stage, work.resume) for work in pending(found, config)])
    own = {step.stage: step for step in found}
    return [Work(own[stage], resume) for stage, resume in asked]


def _require_same_config(found: Sequence[Step], decided: Sequence[dict[str, Any]]) -> None:
    for step, decided_by in zip(found, decided):
        # What was copied from host to host may be told by the times of its files.
        values = [{k: v for k, v in tree.items() if k not in BY_TIMES} for tree in (decided_by, step.decided_by)]
        if changed := differences(*values):
            raise Refusal(
                "command line",
                f"this host's configuration is not rank 0's: {', '.join(changed[:6])}",
                "the same command line and the same conf/ on every host",
            )


def _done(step: Step) -> bool:
    manifest = step.folder.manifest()
    return manifest is not None and manifest.status == DONE and manifest.config_hash == step.config_hash


def _interrupted(step: Step) -> bool:
    manifest = step.folder.manifest()
    return (
        manifest is not None
        and manifest.status != DONE
        and manifest.config_hash == step.config_hash
        and bool(step.folder.checkpoints())
    )


def _require_own_part(copies: FolderCopies, run: Path, step: Step) -> None:
    """Without this host's shards no checkpoint is whole, and the stage would start over without a word."""
    if not copies.keeps:
        return
    try:
        place = json.loads((run / PLACE).read_text())
    except (OSError, ValueError):
        place = None
    if place == {"ranks": copies.beside, "world_size": ranks.world_size()}:
        return
    was = "no part of them" if place is None else f"the part of ranks {place['ranks']} of {place['world_size']}"
    raise Refusal(
        "run_dir",
        f"{step.stage} was interrupted and has checkpoints, of which {run} on {gethostname()} holds {was}; "
        f"its ranks are {copies.beside} of {ranks.world_size()} now",
        f"the same hosts in the same order with their own run folders; stage={step.stage} fresh=true starts it over",
    )
