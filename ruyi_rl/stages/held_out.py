"""Pass rates of a stage's family on the held-out rows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ruyi_rl import ranks
from ruyi_rl.benchmarks.asked import completion_limit
from ruyi_rl.benchmarks.completions import COMPLETIONS, SHOWN, completion_lines, write_completions
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.config import RunConfig
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.evaluation import evaluate_family
from ruyi_rl.execution import StageContext
from ruyi_rl.pipeline import decides
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.report.tables import percent
from ruyi_rl.rewards.composition import composed_rewards, function_rewards
from ruyi_rl.rewards.failures import FILE, RewardFailures, Share, share_of
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.run_folder import StageFolder, config_hash, flat
from ruyi_rl.stages.inputs import device, load_family, load_tokenizer
from ruyi_rl.training.options import EvaluationOptions
from ruyi_rl.watchdog import watched


class ScoredJudge:
    """The judge of a `reward` group as a function of TRL's signature, which never raises.

    What it cannot judge is None; `settle` shares that with the other ranks, and ends all of them where it is too much.

    Args:
        scorer: has the judge's function and those of its gates.
        failures: takes what failed.
        occasion: what is measured.
    """

    def __init__(self, scorer: RewardScorer, failures: RewardFailures, occasion: str):
        self.scorer, self.failures, self.occasion = scorer, failures, occasion
        self._shares: list[Share] = []

    def __call__(self, prompts, completions, exit, log_extra, log_metric, **columns) -> list[float | None]:
        columns |= {"prompts": prompts, "exit": exit}
        judges = self.scorer.judges
        try:
            scored = self.scorer.score(completions, columns, groups=[repr(prompt) for prompt in prompts], only=judges)
        except Exception as error:  # noqa: BLE001  whatever it is, all ranks must end together
            self._shares.append(Share({}, problem=f"{type(error).__name__}: {error}"))
            return [None] * len(completions)
        self._shares.append(share_of(scored, exit, prompts, completions))
        for name, values in scored.extra.items():
            log_extra(name, values)
        if len(judges) > 1:
            return composed_rewards(self.scorer.options, scored)
        return function_rewards(scored, judges[0])

    def settle(self) -> None:
        """Gives `failures` what all ranks' completions since the last call came to.

        Raises:
            StageFailed: on every rank, see `RewardFailures.take`.
        """
        shares = [share for rank in ranks.gathered(self._shares) for share in rank]
        self._shares = []
        self.failures.take(shares, "evaluation", occasion=self.occasion)


def reward_failures(context: StageContext, reward: RewardOptions | None = None, block: str = "") -> RewardFailures:
    """Where a stage keeps what its rewards fail on; `reward`: another group than the run's, in this `block`."""
    return RewardFailures(
        reward or context.config.reward,
        context.folder / FILE,
        lambda text: context.console.print(text, markup=False, highlight=False, soft_wrap=True),
        block,
    )


def evaluation_options(config: RunConfig) -> EvaluationOptions:
    """`evaluation` with its completion limit filled in."""
    return replace(config.evaluation, max_new_tokens=completion_limit(config))


def measurement(config: RunConfig) -> str:
    """Hash of all that decides a measurement but the family: equal hashes make pass rates comparable."""
    reward = flat({"reward": asdict(config.reward)})
    tree = {
        "evaluation": {
            key: value for key, value in asdict(evaluation_options(config)).items() if decides(f"evaluation.{key}")
        },
        "reward": {key: value for key, value in reward.items() if decides(key)},
        "rollout": config.rollout.backend,
        "data": asdict(config.data),
        "template": config.grpo.trainer.get("chat_template_kwargs") or {},
        "seed": config.seed,
    }
    return config_hash(flat(tree))


def measure(
    context: StageContext,
    folder: Path,
    rows: Any,
    scorer: RewardScorer | None,
    failures: RewardFailures,
    exits: Sequence[str],
    rollout: Rollout,
    description: str,
) -> dict[str, Any] | None:
    """Pass rates of the family in `folder`, every rank with its own copy: the trainer's may be sharded.

    Args:
        rows: held-out rows.
        scorer: judges; None: nothing is measured.
        failures: takes what could not be judged.
        exits: names of the exits to measure.
        rollout: generates, with this family's weights from now on.
        description: for the progress line.

    Returns:
        `{"measurement": …, "problems": …, "samples": …, "temperature": …, "exits": {name: ExitScore as a dict}}`,
        or None where evaluation is off, or there is nothing to judge with or on.
    """
    config = context.config
    if not config.evaluation.problems or scorer is None or not len(rows):
        return None
    tokenizer = load_tokenizer(folder)
    template_kwargs = config.grpo.trainer.get("chat_template_kwargs")
    rows, _ = limit_prompts(rows, tokenizer, config.data.max_prompt_tokens, template_kwargs)
    with watched(context), ProgressLine(context.console, description, 2 * len(exits), lines=0) as line:
        context.heart.enter(description)
        family = load_family(folder, config.model).to(device()).eval()
        rollout.update_weights(family)
        found = rates(
            context,
            tokenizer,
            rows,
            scorer,
            failures,
            exits,
            rollout,
            description,
            lambda exit, done, total: line.update(done, exit),
        )
    del family
    release_memory()
    context.console.print(told_shortly(description, found["exits"]), markup=False, soft_wrap=True)
    return found


def rates(
    context: StageContext,
    tokenizer: Any,
    rows: Any,
    scorer: RewardScorer,
    failures: RewardFailures,
    exits: Sequence[str],
    rollout: Rollout,
    occasion: str,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Pass rates with the weights that `rollout` has; what `measure` returns.

    Args:
        rows: held-out rows within the prompts' limit, at least one.
        occasion: what is measured; failures of an attempt at it that did not come to its end are forgotten.
        progress: see `evaluate_family`.
    """
    config, options = context.config, evaluation_options(context.config)
    failures.forget(lambda row: row.get("occasion") == occasion)
    judge = ScoredJudge(scorer, failures, occasion)
    measured = evaluate_family(
        tokenizer,
        rows,
        Judge(judge, config.reward.pass_at, judge.settle),
        exits,
        options,
        rollout,
        config.seed,
        config.grpo.trainer.get("chat_template_kwargs") or {},
        progress,
        texts=SHOWN.problems,
    )
    if ranks.rank() == 0:
        lines = completion_lines(occasion, config.data.name, rows, measured, SHOWN)
        write_completions(context.folder / COMPLETIONS, occasion, config.data.name, lines, context.redaction)
    return {
        "measurement": measurement(config),
        "problems": min(options.problems, len(rows)),
        "samples": options.samples,
        "temperature": options.temperature,
        "exits": {name: asdict(each.score) for name, each in measured.items()},
    }


def told_shortly(description: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One line of scores, each an `ExitScore` as a dict."""
    found = (
        f"{name} {percent(score['pass_rate'])} (greedy {percent(score['greedy'])})" for name, score in scores.items()
    )
    return f"{description}: {'  '.join(found)}"


def told(score: Mapping[str, Any], when: str) -> dict[str, Any]:
    """A score, an `ExitScore` as a dict, as a summary tells it of a moment: `pass_<when>`, `greedy_<when>` …"""
    return {
        f"pass_{when}": score["pass_rate"],
        f"pass_{when}_standard_error": score["standard_error"],
        f"greedy_{when}": score["greedy"],
        f"mean_tokens_{when}": score["mean_tokens"],
        f"truncated_{when}": score["truncated"],
    }


def measured_already(context: StageContext, exits: Sequence[str]) -> dict[str, Any] | None:
    """The closing measurement of the stage before, where it was made in the same way for the same exits."""
    try:
        found = StageFolder(context.input).summary().get("held_out")
    except (FileNotFoundError, ValueError):
        return None
    if not found or found["measurement"] != measurement(context.config) or not set(exits) <= set(found["exits"]):
        return None
    return {**found, "exits": {name: found["exits"][name] for name in exits}}


def release_memory() -> None:
    """Gives the accelerator back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
