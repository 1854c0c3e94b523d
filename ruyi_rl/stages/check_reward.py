"""`stage=check_reward`: tries a reward on completions: the contract, a table of scored samples, the speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import check_data
from ruyi_rl.data.embedded import SOURCES
from ruyi_rl.data.options import DataOptions
from ruyi_rl.failure import StageFailed
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.report.streams import note_console
from ruyi_rl.report.trials import broken_list, print_samples, print_trials, trials_as_json
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.results import RewardError
from ruyi_rl.rewards.samples import Samples, data_samples, file_samples, prompt_key, require_columns
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rewards.trial import Trial, try_function
from ruyi_rl.run_folder import write_json


def run(config: RunConfig) -> None:
    """Shows what came of every check, the samples and the speed; everything else goes to standard error.

    Raises:
        Refusal: completions or columns that are not there.
        StageFailed: a function breaks the contract, or cannot be imported.
    """
    options, out, notes = config.check_reward, run_console(), note_console()
    with notes.status("reading the data"):
        samples = read_samples(config)
    require_columns(samples, check_reward(config.reward))
    trials = []
    for name in config.reward.functions:
        with notes.status(f"trying {name}"):
            trials.append(tried(name, config.reward, samples))
    reward = composed(config.reward, samples) if all(trial.rewards for trial in trials) else None
    print_samples(out, samples, trials, reward, options.shown)
    print_trials(out, trials)
    if options.output is not None:
        write_json(Path(options.output), trials_as_json(config.reward.name, samples, trials, reward))
        notes.print(f"all results in {options.output}", markup=False, soft_wrap=True)
    if any(trial.broken for trial in trials):
        raise StageFailed(f"reward={config.reward.name} breaks the contract:\n{broken_list(trials)}")
    out.print(f"reward={config.reward.name} keeps the contract.", style="green", markup=False)


def tried(name: str, options: RewardOptions, samples: Samples) -> Trial:
    """What came of one function.

    Raises:
        StageFailed: no worker can be started with it.
    """
    try:
        return try_function(name, options.functions[name], samples, alone=len(options.functions) == 1)
    except RewardError as error:
        raise StageFailed(f"reward.functions.{name}: {error}") from error


def composed(options: RewardOptions, samples: Samples) -> list[float | None] | None:
    """The reward of each sample, all functions together, as in a training; None where one function alone is it."""
    functions = list(options.functions.values())
    if len(functions) == 1 and functions[0].weight == 1 and functions[0].clip is None and options.clip is None:
        return None

    from ruyi_rl.rewards.composition import composed_rewards

    with RewardScorer(options) as scorer:
        return composed_rewards(options, scorer.score(samples.messages(), samples.columns, samples.groups))


def read_samples(config: RunConfig) -> Samples:
    """The completions that the options ask for, with the data's columns.

    Raises:
        Refusal: a bad file, or data that has neither completions nor answers.
    """
    from ruyi_rl.data.loading import load_data

    options = config.check_reward
    exit = list(config.model.exits)[-1] if config.model.exits else ""
    if options.completions is not None:
        splits = load_data(config.data, config.seed, "grpo")
        questions = [row for split in (splits.train, splits.test) for row in split]
        return file_samples(Path(options.completions), options.samples, questions, exit)
    limit = min(options.samples, config.data.limit or options.samples)
    first = replace(config.data, limit=limit)
    if config.data.source in SOURCES:
        # Their demonstrations are shuffled by themselves, and a row has None where another function judges it.
        needs = {column for columns in check_reward(config.reward).values() for column in columns}
        known = {prompt_key(row["prompt"]): row for row in load_data(config.data, config.seed, "grpo", needs).train}
        demonstrated = list(load_data(first, config.seed, "sft").train)
        return data_samples([known[prompt_key(row["prompt"])] for row in demonstrated], demonstrated, exit)
    questions = list(load_data(first, config.seed, "grpo").train)
    demonstrations: list[dict[str, Any]] = []
    if has_completions(first):
        demonstrations = list(load_data(first, config.seed, "sft").train)
    return data_samples(questions, demonstrations, exit)


def has_completions(options: DataOptions) -> bool:
    """Whether rows that can be asked can be learnt from too."""
    try:
        check_data(options, "sft")
    except Refusal:
        return False
    return True
