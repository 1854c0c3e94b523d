"""`stage=serve`: one exit's branch as a stock Qwen on disk, and the vLLM command that serves it."""

from __future__ import annotations

import os
import sys

from ruyi_rl.config import RunConfig
from ruyi_rl.report.streams import note_console
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.stages.export import write_exports
from ruyi_rl.stages.exported import is_export, require_own, serve_target
from ruyi_rl.stages.vllm_command import server_command
from ruyi_rl.tools import find_family
from ruyi_rl.validation.model import family_exits, read_model_config


def run(config: RunConfig) -> None:
    """Exports the branch where that has not been done, prints the command on standard output and everything else on
    standard error; with `launch` the server takes this process over.

    Raises:
        Refusal: a folder in the way, or a family that cannot be loaded.
        StageFailed: the exported branch is not the family's.
    """
    options, family, notes = config.serve, find_family(config), note_console()
    environment = dict(os.environ)
    stored = read_model_config("start_from", family)
    target = serve_target(config, stored, family_exits(stored))
    if not config.fresh and is_export(family, target):
        notes.print(
            f"{target.folder} holds {target.exit} of {family} already", style="dim", markup=False, soft_wrap=True
        )
    else:
        require_own("serve.output", target.folder)
        write_exports(family, [target], notes)
    command = server_command(target.folder, target.exit, options)
    if options.rollout and options.host not in ("127.0.0.1", "localhost", "::1"):
        notes.print(
            f"whoever reaches {options.host}:{options.port} can replace the weights; serve.rollout=false forbids it",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if problem := vllm_problem():
        notes.print(problem, style="yellow", markup=False, soft_wrap=True)
    print(command.line, flush=True)
    if config.launch:
        sys.stderr.flush()
        os.execvpe(command.words[0], command.words, environment | command.environment)
