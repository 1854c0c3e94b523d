"""`stage=serve`: one exit's branch as a stock Qwen on disk, and the vLLM command that serves it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.report.streams import note_console
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.exported import MARK, default_exit, export_folder, exported_from, origin, require_own
from ruyi_rl.stages.vllm_command import server_command
from ruyi_rl.tools import find_family
from ruyi_rl.validation.model import family_exits, read_model_config


def run(config: RunConfig) -> None:
    """Exports the branch where that has not been done, prints the command on standard output and everything else on
    standard error; with `launch` the server takes this process over.

    Raises:
        Refusal: a folder in the way, or a family that cannot be loaded.
    """
    options, family, notes = config.serve, find_family(config), note_console()
    environment = dict(os.environ)
    stored = read_model_config("start_from", family)
    exit = options.exit or default_exit(stored, family_exits(stored))
    folder = export_folder(config, exit)
    if not config.fresh and exported_from(folder) == origin(family, exit):
        notes.print(f"{folder} holds {exit} of {family} already", style="dim", markup=False, soft_wrap=True)
    else:
        require_own(folder)
        with notes.status(f"exporting {exit} of {family}"):
            quiet_libraries()
            export(family, exit, folder, config.model)
        notes.print(f"{exit} of {family} exported to {folder}", style="dim", markup=False, soft_wrap=True)
    command = server_command(folder, exit, options)
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


def export(family: Path, exit: str, folder: Path, options: ModelOptions) -> None:
    """Writes an exit's branch with its tokenizer, such that transformers and vLLM load it as a stock Qwen.

    Args:
        folder: what it holds is deleted.
    """
    from ruyi_rl.rollout.transformers import end_token_ids
    from ruyi_rl.stages.inputs import load_family, load_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / MARK, {})
    tokenizer, source = load_tokenizer(family), load_family(family, options)
    branch = source.branch(exit, copy=False)
    branch.generation_config.eos_token_id = end_token_ids(source, tokenizer)
    branch.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / MARK, origin(family, exit))
