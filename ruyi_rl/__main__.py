"""The command: `python -m ruyi_rl [options] [group=choice …] [key=value …]`."""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from ruyi_rl import ranks
from ruyi_rl.cli.compose import (
    ConfigSource,
    compose_config,
    conf_dir,
    register_schema,
    resolve_values,
    to_run_config,
    working_conf,
)
from ruyi_rl.cli.launch import launch, needs_launch, require_launched
from ruyi_rl.cli.overview import print_help, print_overview
from ruyi_rl.cli.sweep.process import end_with_sweep
from ruyi_rl.cli.sweep.run import run_sweep
from ruyi_rl.config import RunConfig
from ruyi_rl.disk import refused_write
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.launcher_command import take_torchruns_names, without_local_rank
from ruyi_rl.launchers import end_with_launcher
from ruyi_rl.pipeline import TOOLS, run_stages
from ruyi_rl.redaction import Redaction
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.tools import run_tool
from ruyi_rl.validation import validate

OTHERS_WRITE = stat.S_IWOTH
"""Taken from the mode of all that the command makes, whatever the user's umask: a run folder is read again."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None: this process's.

    Returns:
        The exit status: 0; 1 for a failed run; 2 for a refused command; 130 or 143 for an interrupted run.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    end_with_launcher()
    end_with_sweep()
    take_torchruns_names()
    os.umask(os.umask(0) | OTHERS_WRITE)
    hidden = Redaction.of_command(arguments)
    try:
        return _run(arguments)
    except Refusal as refusal:
        # Every rank refuses the same; one message is enough.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"ruyi_rl: {hidden.text(str(refusal))}", file=sys.stderr)
        return 2
    except StageFailed as failure:
        print(f"ruyi_rl: {hidden.text(str(failure))}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"ruyi_rl: {hidden.text(str(interruption))}", file=sys.stderr)
        return interruption.status
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    arguments = without_local_rank(arguments)
    parser = get_args_parser()
    parser.error = _refuse_option
    options = parser.parse_intermixed_args(arguments)
    source = _source(options)
    if options.help:
        print_help(run_console(), source)
        return 0
    if options.cfg == "job":
        _print_config(compose_config(options.overrides, source), options)
        return 0
    if options.cfg or options.info or options.hydra_help or options.shell_completion:
        return _hydra(source)
    if options.multirun:
        return run_sweep(options.overrides, source, _flags(options))
    config = compose_config(options.overrides, source)
    if config.stage.name == "overview":
        print_overview(run_console(), source)
        return 0
    run_config = to_run_config(config)
    tool, hosts = run_config.stage.name in TOOLS, ranks.host_count()
    with ranks.connected() if hosts > 1 and not tool else nullcontext():
        if hosts > 1 and not tool:
            # One host refused by itself, where its copy of the data is missing, would leave the others waiting for it.
            ranks.everywhere(lambda: _check(run_config))
        else:
            _check(run_config)
        if needs_launch(run_config):
            return launch(run_config.num_processes, [*_flags(options), *options.overrides])
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            if tool:
                run_tool(run_config)
            else:
                run_stages(run_config, [*_flags(options), *options.overrides])
        except OSError as error:  # in keeping the books: a stage has caught its own
            if (refused := refused_write(error, Path(run_config.run_dir))) is None:
                raise
            raise StageFailed(f"{refused}\nThen go on with the same command") from error
    return 0


def _check(config: RunConfig) -> None:
    validate(config)
    require_launched(config)


def _print_config(config: DictConfig, options: argparse.Namespace) -> None:
    """`--cfg job`, with `--resolve` and `--package`."""
    if options.resolve:
        resolve_values(config)
    shown = OmegaConf.select(config, options.package) if options.package else config
    if shown is None:
        raise Refusal("--package", f"{options.package!r} holds nothing", "a block of the configuration: grpo.trainer")
    hidden, key = Redaction.of(OmegaConf.to_container(config)), options.package or ""
    if OmegaConf.is_config(shown):
        print(OmegaConf.to_yaml(OmegaConf.create(hidden.tree(OmegaConf.to_container(shown), key))).rstrip("\n"))
    else:
        print(hidden.tree(shown, key))


def _refuse_option(message: str) -> NoReturn:
    raise Refusal("command line", message, "options are in --help; keys are set without dashes: key=value")


def _source(options: argparse.Namespace) -> ConfigSource:
    if options.config_path or options.experimental_rerun:
        flag = "--config-path" if options.config_path else "--experimental-rerun"
        raise Refusal(flag, "this option of Hydra's has no effect here", "--config-dir adds a folder of your own")
    extra = None
    if options.config_dir is not None:
        extra = Path(options.config_dir).expanduser().absolute()
        if not extra.is_dir():
            raise Refusal("--config-dir", f"{options.config_dir!r} is no folder", "a folder such as conf")
    return ConfigSource(extra, options.config_name or "config", working_conf(extra))


def _flags(options: argparse.Namespace) -> list[str]:
    flags = ["--config-dir", options.config_dir] if options.config_dir else []
    return flags + (["--config-name", options.config_name] if options.config_name else [])


def _hydra(source: ConfigSource) -> int:
    """Hydra's own options (`--info`, `--cfg hydra`, …), which read the process's arguments and run nothing."""
    import hydra

    register_schema()
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=source.root)(lambda config: None)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
