"""What `stage=eval` is asked to measure by itself: `eval.benchmarks`, `eval.pass_at`, `eval.completions`."""

from __future__ import annotations

import re
from pathlib import Path

from ruyi_rl.benchmarks.asked import TAKEN, Asked, asked_benchmarks
from ruyi_rl.benchmarks.split import under, whole_split
from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import check_data
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.validation.values import require

NAME = re.compile(r"\w[\w-]*")
"""A benchmark's name is the name of its folder."""


def check_benchmarks(config: RunConfig) -> None:
    """Check them.

    Raises:
        Refusal: the first thing that is wrong; of data and rewards with the key under `eval.benchmarks.<name>`.
    """
    options = config.eval
    require("eval.resamples", options.resamples, options.resamples >= 100, "100 or more")
    check_completions(options.completions)
    asked = asked_benchmarks(config)
    _check_pass_at("eval.pass_at", options.pass_at)
    for each in asked:
        _check_numbers(each)
        if options.completions is None:
            _check_samples(each)
        if not each.own:
            require(each.block, each.name, bool(NAME.fullmatch(each.name)) and each.name not in TAKEN, "another name")
            if not each.options.reward.functions:
                chosen = ",".join(config.eval.benchmarks)
                raise Refusal(
                    each.block, "this benchmark was not chosen", f"benchmark=[{chosen}], or its data and reward"
                )
            with under(each.block):
                columns = {name for names in check_reward(each.options.reward).values() for name in names}
                rows = each.options.data
                check_data(whole_split(rows) if rows.source == "rows" else rows, "grpo", sorted(columns))


def check_completions(given: str | None) -> None:
    """Refuse a file of completions that is not there."""
    if given is not None and given != "reference" and not Path(given).is_file():
        raise Refusal("eval.completions", f"no file {given}", "reference, or a JSONL file with a completion a line")


def _check_numbers(asked: Asked) -> None:
    if asked.own:
        return  # `evaluation` has been looked at
    options = asked.options
    for name in ("problems", "samples", "max_new_tokens"):
        value = getattr(options, name)
        require(asked.key(name), value, value is None or value >= 1, "1 or more, or null")
    require(asked.key("temperature"), options.temperature, options.temperature > 0, "above 0, or null")
    _check_pass_at(asked.key("pass_at"), options.pass_at)


def _check_pass_at(key: str, ks: list[int] | None) -> None:
    require(key, ks, ks is None or (bool(ks) and all(k >= 1 for k in ks)), "a list of numbers from 1 on, or null")


def _check_samples(asked: Asked) -> None:
    """Refuse a k above the samples: nothing unbiased can be said of it."""
    samples, most = asked.options.samples, max(asked.options.pass_at or [1])
    if most > samples:
        key = "evaluation.samples" if asked.own else asked.key("samples")
        raise Refusal(
            "eval.pass_at",
            f"{most} is more than the {samples} samples of {asked.name}",
            f"at most that, or a larger {key}",
        )
