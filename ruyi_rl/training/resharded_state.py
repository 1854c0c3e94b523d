"""Weights and optimiser states of another number of ranks, or of another ZeRO mode, for a prepared trainer.

DeepSpeed refuses such a checkpoint. Its way around, the universal checkpoint, gives every group of parameters the
learning rate and the weight decay of the first one under ZeRO-3, knows no run without DeepSpeed, and writes all states
to the disk once more. So they are taken out of the files here, one parameter after the other, and put into the new
optimiser's partitions, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ruyi_rl import ranks
from ruyi_rl.checkpoint_folder import read_seal
from ruyi_rl.failure import StageFailed
from ruyi_rl.training.checkpoints import zero_mode
from ruyi_rl.training.live_optimizer import live_optimizer
from ruyi_rl.training.stored_optimizer import WEIGHT, Shard, StoredFile, WholeOptimizer, shard_paths, shard_rank


@torch.no_grad()
def load_resharded(trainer, checkpoint: Path) -> None:
    """Gives a prepared trainer the trained weights and the optimiser's states of a checkpoint; every rank calls it.

    Raises:
        StageFailed: files that no rank sees, or states that cannot be spread anew.
    """
    named = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    names = {parameter: name for name, parameter in named.items()}
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    try:
        # As the trainer makes its optimiser: the parameters that decay, and then the others.
        stored = SharedFiles.open(checkpoint, sorted(named, key=lambda name: name not in decayed))
        optimizer = live_optimizer(trainer.optimizer)
        firsts = [names[flat.parameters[0]] for flat in optimizer.flats]
        for flat, first in zip(optimizer.flats, firsts, strict=True):
            _require_equal(stored, first, [names[parameter] for parameter in flat.parameters])
        keys = stored.keys
        optimizer.begin(keys, [stored.scalars(name) for name in firsts], [stored.group(name) for name in firsts])
        for name, parameter in named.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            optimizer.put_weight(parameter, stored.whole(name, WEIGHT, shape, trainer.args.device))
            for key in keys:
                optimizer.put_state(parameter, stored.whole(name, key, shape, trainer.args.device), key)
    except ValueError as error:
        raise StageFailed(
            f"{checkpoint} cannot go on on {ranks.world_size()} ranks under {zero_mode(trainer.args)}: {error}"
        ) from error
    if (engine := getattr(trainer, "deepspeed", None)) is not None:
        engine.global_steps = trainer.state.global_step
        engine.global_samples = engine.global_steps * engine.train_batch_size()


class SharedFiles:
    """The files of a checkpoint, each read by the first rank that sees it, on its own host or on a shared disk."""

    def __init__(self, mine: Mapping[int, StoredFile], count: int):
        self._files = mine
        seen = ranks.gathered(set(mine))
        self._readers = {
            number: next(rank for rank, own in enumerate(seen) if number in own) for number in set().union(*seen)
        }
        if missing := sorted(set(range(count)) - set(self._readers)):
            raise ValueError(f"no host has the files of rank {missing[0]}" + (" and others" if missing[1:] else ""))
        read_here = {number: mine[number].contents for number, rank in self._readers.items() if rank == ranks.rank()}
        self._contents = [
            contents for _, contents in sorted(item for found in ranks.gathered(read_here) for item in found.items())
        ]

    @classmethod
    def open(cls, checkpoint: Path, names: Sequence[str]) -> SharedFiles:
        """Opens what this rank sees; every rank calls it.

        Args:
            names: of the trained parameters, in the order in which the trainer gives them to its optimiser.

        Raises:
            ValueError: a file that no rank sees, or states that belong to no single element of a parameter.
        """
        seal = read_seal(checkpoint)
        if seal.deepspeed != "off":
            return cls({shard_rank(path): Shard(path) for path in shard_paths(checkpoint)}, seal.world_size)
        here = (checkpoint / "optimizer.pt").is_file()
        return cls({0: WholeOptimizer(checkpoint, names)} if here else {}, 1)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the states that have an element for each of a parameter's."""
        return self._contents[0].keys

    def scalars(self, name: str) -> Mapping[str, Any]:
        """A parameter's other states."""
        return next(contents.scalars[name] for contents in self._contents if name in contents.scalars)

    def group(self, name: str) -> Mapping[str, Any]:
        """What a parameter's group has: learning rate, weight decay …"""
        return next(contents.groups[name] for contents in self._contents if name in contents.groups)

    def whole(self, name: str, key: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """A parameter or a state of its elements, float32, on every rank; every rank calls it.

        Raises:
            ValueError: the files hold another number of elements.
        """
        found = torch.empty(torch.Size(shape).numel(), dtype=torch.float32, device=device)
        place = 0
        for number, contents in enumerate(self._contents):
            run = contents.runs.get(name)
            if run is None:
                continue
            part = found[place : place + run.length]
            if self._readers[number] == ranks.rank():
                part.copy_(self._files[number].read(name, key))
            if ranks.world_size() > 1:
                torch.distributed.broadcast(part, src=self._readers[number])
            place += run.length
        if place != found.numel():
            raise ValueError(f"{place} numbers are stored for the {found.numel()} of {name}")
        return found.view(shape)


def _require_equal(stored: SharedFiles, first: str, names: Sequence[str]) -> None:
    """Raises ValueError where parameters that are stepped as one tensor were not stepped alike."""
    for name in names:
        if stored.scalars(name) != stored.scalars(first) or stored.group(name) != stored.group(first):
            raise ValueError(f"{name} has other states than {first}, with which it is to be stepped")
