"""The jobs of a sweep: which there are, where each writes, which are done already. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, RangeSweep, ValueType

from ruyi_rl.cli.compose import Compositions, ConfigSource, compose_config, to_run_config
from ruyi_rl.cli.overrides import parse_overrides
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import TOOLS, pending, steps
from ruyi_rl.redaction import Redaction
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.exported import asked_exits
from ruyi_rl.stages.options import FAMILY_FORMATS
from ruyi_rl.validation import validate

UNNAMED = ("fresh", "num_processes", "launch")
"""Keys that do not enter a sweep's name: the same jobs go on with other values."""
LONGEST_WORDS = 40
"""Characters of a sweep's name that say what is swept."""


@dataclass
class Job:
    """One job of a sweep."""

    number: int
    """From 1."""
    overrides: list[str]
    """All of the job's, as a command takes them."""
    swept: list[str]
    """Those of them that differ between jobs."""
    config: RunConfig | None = None
    """None: the job is refused."""
    refusal: Refusal | None = None
    done: bool = False
    """Whether its run folder holds its result already."""
    ranks: int = 1
    """Processes on one machine."""

    @cached_property
    def redaction(self) -> Redaction:
        """Hides the job's secrets in what is stored or shown; once it is checked."""
        return Redaction.of_command(self.overrides) if self.config is None else Redaction.of(asdict(self.config))

    def command(self, words: Sequence[str]) -> str:
        """A command line without the job's secrets: each word by itself, since quoting would change them."""
        return shlex.join([self.redaction.text(word) for word in words])


def split_sweep(overrides: list[str]) -> tuple[list[Override], list[Override]]:
    """Parsed overrides with one value, and those with several, each in the order typed.

    Raises:
        Refusal: a range that holds nothing, or has no end.
    """
    parsed = parse_overrides(overrides)
    for override in parsed:
        values = override.value()
        if isinstance(values, RangeSweep) and (values.stop - values.start) * values.step <= 0:
            problem = f"{override.get_value_string()} never gets from its start to its end"
            raise Refusal(override.key_or_group, problem, "range(1,4) for 1, 2 and 3; range(3,0,-1) for 3, 2 and 1")
    return (
        [override for override in parsed if not override.is_sweep_override()],
        [override for override in parsed if override.is_sweep_override()],
    )


def sweep_jobs(overrides: list[str]) -> list[Job]:
    """Every combination of the values, the last override varying fastest.

    Args:
        overrides: Hydra overrides, some with several values: `a=1,2`, `a=choice(1,2)`, `a=range(1,4)`.

    Raises:
        Refusal: values without end.
    """
    plain, swept = split_sweep(overrides)
    for override in swept:
        if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise Refusal(
                override.key_or_group,
                "this kind of sweep cannot be enumerated",
                "a=1,2, choice() or range(); for an interval() hydra/sweeper=optuna",
            )
    (found,) = BasicSweeper.split_arguments(swept, max_batch_size=None)
    lines = [override.input_line for override in plain]
    return [Job(number, lines + job, list(job)) for number, job in enumerate(found, 1)]


def check_job(job: Job, source: ConfigSource, known: Compositions) -> Job:
    """Fills in the job's configuration, whether it is done, or why it is refused.

    Args:
        known: see `compose_config`.
    """
    try:
        config = to_run_config(compose_config(job.overrides, source, known))
        validate(config)
        tool = config.stage.name in (*TOOLS, "overview")
        job.done = not (tool or config.fresh or pending(steps(config), config))
        job.config, job.ranks = config, config.num_processes
    except Refusal as refusal:
        job.refusal = refusal
    return job


def check_folders(jobs: list[Job]) -> None:
    """Refuse jobs of which two would write in one place."""
    owners: dict[tuple[str, str], Job] = {}
    for job in jobs:
        for key, place in written(job.config) if job.config is not None else ():
            if (other := owners.setdefault((key, place), job)) is not job:
                problem = f"jobs {other.number} and {job.number} would both write {place}"
                raise Refusal(key, problem, _apart(key, other, job))


def _apart(key: str, other: Job, job: Job) -> str:
    """How two jobs that would write in one place are kept apart."""
    differing = [_key(line) for line in job.swept if line not in other.swept]
    if not differing:
        return "they are the same"
    if {_key(line) for line in job.overrides} & ({"name", "run_dir"} if key == "name" else {key}):
        default = "leave name and run_dir to the defaults" if key == "name" else f"leave {key} out"
        return f"{default}, or let it hold the swept values"
    # A group's choice is a block of the configuration, and has a name.
    blocks = [word for word in differing if hasattr(getattr(job.config, word, None), "name")]
    words = "-".join(f"${{{word}.name}}" if word in blocks else f"${{{word}}}" for word in differing)
    default = "name" if key == "name" else "folder"
    verb = "do" if differing[1:] else "does"
    return f"{' and '.join(differing)} {verb} not enter the default {default}: {key}='x-{words}'"


def _key(line: str) -> str:
    return line.lstrip("+").partition("=")[0]


def written(config: RunConfig) -> list[tuple[str, str]]:
    """Keys that decide where a job writes, and the places there that no other job may write."""
    stage = config.stage.name
    if stage in ("generate", "serve", "export", "check_reward", "compare"):
        output = getattr(config, stage).output
        usual = [str(Path(config.run_dir) / stage / part) for part in _parts(config)]
        places = [(f"{stage}.output", place) for place in ([output] if output else usual)]
        return places + ([("push_to", config.push_to)] if config.push_to is not None else [])
    if stage == "new_reward":
        return [("name", config.name)]
    return [] if stage in (*TOOLS, "overview") else [("name", config.run_dir)]


def _parts(config: RunConfig) -> list[str]:
    """What `export` and `serve` write in a run's folder, as far as the configuration tells it; `*`: by the family."""
    if config.stage.name == "serve":
        return [config.serve.exit or "*"]
    if config.stage.name != "export":
        return []
    format = config.export.format
    return [format] if format in FAMILY_FORMATS else [f"{exit}-{format}" for exit in asked_exits(config) or ["*"]]


def hidden_words(words: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """The words without the secrets of any job."""
    hidden = list(words)
    for job in jobs:
        hidden = [job.redaction.text(word) for word in hidden]
    return hidden


def sweep_name(
    overrides: Sequence[str], swept: Sequence[str], stage: str, also: dict[str, object] | None = None
) -> str:
    """`<stage>-<what is swept>-<hash>`, by the command and not by the clock, so that the same command goes on.

    Args:
        overrides: the command's, without Hydra's own and without secrets, which decide nothing.
        swept: the keys with several values.
        stage: what the jobs run.
        also: what else makes it another sweep.
    """
    words = "-".join(key.rpartition(".")[2] for key in swept)
    if len(words) > LONGEST_WORDS:
        words = words[:LONGEST_WORDS].rpartition("-")[0] or words[:LONGEST_WORDS]
    decisive = sorted(line for line in overrides if line.lstrip("+~").partition("=")[0] not in UNNAMED)
    text = json.dumps([decisive, also or {}], sort_keys=True)
    return "-".join(filter(None, (stage, words, hashlib.sha256(text.encode()).hexdigest()[:6])))


def swept_keys(overrides: list[str]) -> list[str]:
    """The keys with several values, in the order typed."""
    return [override.key_or_group for override in split_sweep(overrides)[1]]


def sweep_folder(chosen: str | None, name: str) -> Path:
    """`hydra.sweep.dir`, else `multirun/<name>`."""
    return Path(chosen).expanduser() if chosen else Path("multirun") / name
