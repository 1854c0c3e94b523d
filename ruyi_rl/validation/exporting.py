"""`stage=export` and `push_to`: what can be known before torch is imported and the hub is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.stages.exported import Target, asked_exits, export_targets, factored_modules, require_own
from ruyi_rl.stages.options import EXPORT_CHECKS, EXPORT_FORMATS, FAMILY_FORMATS
from ruyi_rl.stages.published_names import untellable
from ruyi_rl.validation.folders import require_folder
from ruyi_rl.validation.values import require, require_choice, require_exits


def check_push(config: RunConfig) -> None:
    """Refuse `push_to` for a stage that exports nothing."""
    if config.push_to is not None and config.stage.name != "export":
        raise Refusal("push_to", f"stage={config.stage.name} exports nothing", "stage=export")


def check_export(config: RunConfig, family: Path, stored: Mapping[str, Any], exits: Mapping[str, int]) -> None:
    """Refuse an export that cannot be made.

    Args:
        family: its folder.
        stored: its config.json.
        exits: exit name -> position k.

    Raises:
        Refusal: the first thing that is wrong.
    """
    options, asked = config.export, asked_exits(config)
    require_choice("export.format", options.format, EXPORT_FORMATS)
    require_choice("export.check", options.check, EXPORT_CHECKS)
    require("export.license", options.license, options.license is None or bool(options.license.strip()), "apache-2.0")
    for name in asked or ():
        if name not in exits:
            raise Refusal("export.exit", f"no exit {name!r} in {family}", nearest(name, exits))
    require_exits("export.exit", asked or (), exits)
    if options.format in FAMILY_FORMATS and asked is not None:
        raise Refusal("export.exit", f"{asked}, but format={options.format} holds all exits", "null, or format=merged")
    if options.format == "factored":
        for name in asked or ():
            if not factored_modules(stored, exits, name):
                problem = f"'factored', but {family} holds no factors of {name}"
                raise Refusal("export.format", problem, "merged; or a family that stage=compress has made")
    if options.format == "ruyi" and (problem := untellable(stored, exits)):
        remedy = "family, which keeps them, or merged, which makes each exit a stock Qwen"
        raise Refusal("export.format", f"'ruyi', but {problem}", remedy)
    targets = export_targets(config, stored, exits)
    if not targets:
        problem = f"'factored', but {family} holds no factors"
        raise Refusal("export.format", problem, "merged; or a family that stage=compress has made")
    for target in targets:
        require_folder("export.output", target.folder)
        require_own("export.output", target.folder)
    if config.push_to is not None:
        _check_hub(config.push_to, targets)


def _check_hub(push_to: str, targets: list[Target]) -> None:
    from ruyi_rl.stages.hub import check_hub, repositories  # the hub's client takes a moment to import

    repositories(push_to, targets)
    check_hub()
