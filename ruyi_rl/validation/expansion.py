"""The `expand` and `compress` blocks, and what they make of the family on the way through the stages."""

from __future__ import annotations

from dataclasses import replace

from ruyi_rl.config import RunConfig
from ruyi_rl.family.options import COMPRESSION_METHODS, EXPANSION_INITS, CompressOptions, ExpandOptions
from ruyi_rl.pipeline import ORDER, TWINS
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation.known_family import KnownFamily
from ruyi_rl.validation.training import SFT_WITHOUT_MEANING, check_meaning, check_numbers
from ruyi_rl.validation.values import require, require_choice, require_exits


def families(config: RunConfig, stages: list[str], first: KnownFamily | None) -> dict[str, KnownFamily | None]:
    """Stage -> the family that it starts from (`init`: that it makes); None where that is not known.

    Args:
        stages: in the order in which they run.
        first: the family before or after the first of them.

    Raises:
        Refusal: an expansion or a compression that cannot be, or a stage whose expansion is missing.
    """
    found: dict[str, KnownFamily | None] = {}
    family = first
    for stage in stages:
        found[stage] = family
        if (stage in TWINS or stage == "compress") and family is not None and not family.expanded:
            raise not_expanded(config, stages, stage)
        if stage == "expand":
            family = expanded(config.expand, family)
        elif stage == "compress":
            family = compressed(config.compress, family)
    return found


def not_expanded(config: RunConfig, stages: list[str], stage: str) -> Refusal:
    """The refusal of a stage that needs an expanded exit, with the stages that would give it one."""
    if config.start_from is not None:
        problem = f"no exit of {config.start_from} has the expansion blocks that stage {stage} needs"
        return Refusal("start_from", problem, f"what stage=expand start_from={config.start_from} makes of it")
    others = [name for name in stages if name != "expand"]
    place = next(number for number, name in enumerate(others) if ORDER.index(name) > ORDER.index("expand"))
    hint = ",".join([*others[:place], "expand", *others[place:]])
    problem = f"no exit is expanded before {stage} in [{','.join(stages)}]"
    return Refusal("stages", problem, f"stages=[{hint}], or start_from=<an expanded family>")


def expanded(options: ExpandOptions, family: KnownFamily | None) -> KnownFamily | None:
    """The family after `expand`.

    Raises:
        Refusal: an impossible value, an exit that is not there, is compressed, or expanded already without `again`.
    """
    require("expand.blocks", options.blocks, options.blocks >= 1, "1 or more")
    require_choice("expand.init", options.init, EXPANSION_INITS)
    if family is None:
        return None
    exit = next(iter(family.exits)) if options.exit is None else options.exit
    require_exits("expand.exit", [exit], family.exits)
    if exit in family.compressed:
        raise Refusal("expand.exit", f"{exit} is compressed", "the family that it was compressed from, or another exit")
    before = family.blocks[exit]
    if before and not options.again:
        raise Refusal(
            "expand.exit",
            f"{exit} has {before} expansion blocks already",
            f"expand.again=true appends {options.blocks} more, or another exit",
        )
    return replace(family, blocks={**family.blocks, exit: before + options.blocks})


def compressed(options: CompressOptions, family: KnownFamily | None) -> KnownFamily | None:
    """The family after `compress`, which has expanded exits.

    Raises:
        Refusal: an impossible value, an exit that is not there, not expanded, or compressed already.
    """
    require("compress.ratio", options.ratio, 0 < options.ratio < 1, "above 0, below 1")
    require_choice("compress.method", options.method, COMPRESSION_METHODS)
    for name in ("calibration_rows", "max_length", "batch_size"):
        require(f"compress.{name}", getattr(options, name), getattr(options, name) >= 1, "1 or more")
    require("compress.recover_steps", options.recover_steps, options.recover_steps >= 0, "0 (no recovery) or more")
    check_numbers("compress.trainer", options.trainer)
    check_meaning("compress.trainer", options.trainer, SFT_WITHOUT_MEANING)
    if family is None:
        return None
    exit = compressed_exit(options, family)
    return replace(family, compressed=family.compressed | {exit})


def compressed_exit(options: CompressOptions, family: KnownFamily) -> str:
    """The exit that `compress` takes. Raises Refusal where there is none, or several, or it cannot be this one."""
    possible = [name for name in family.expanded if name not in family.compressed]
    if options.exit is None:
        if not possible:
            raise _compressed_already(family.expanded[0])
        if len(possible) > 1:
            raise Refusal("compress.exit", f"is not given, and {', '.join(possible)} are expanded", "one of them")
        return possible[0]
    require_exits("compress.exit", [options.exit], family.exits)
    if not family.blocks[options.exit]:
        raise Refusal(
            "compress.exit", f"{options.exit} has no expansion blocks", f"allowed: {', '.join(family.expanded)}"
        )
    if options.exit in family.compressed:
        raise _compressed_already(options.exit)
    return options.exit


def _compressed_already(exit: str) -> Refusal:
    return Refusal("compress.exit", f"{exit} is compressed already", "start_from=<the family before it was compressed>")
