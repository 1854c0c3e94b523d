"""Held-out rates of the trained exits during a training: measured, logged, judged, the best families kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ruyi_rl import ranks
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.execution import StageContext
from ruyi_rl.failure import StageFailed
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.run_folder import write_text
from ruyi_rl.signals import StepAbandoned
from ruyi_rl.stages.held_out import measurement, rates, reward_failures, told_shortly
from ruyi_rl.stages.rollouts import completion_limit, rollouts
from ruyi_rl.training.best_families import FOLDER, BestFamilies
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.live_weights import live_weights, save_live
from ruyi_rl.training.quality import Best, Rates, falls, mean_rate, stop_message

CARRIED = "best"
"""Key of what a resumed training goes on with."""


@dataclass(frozen=True)
class Watch:
    """What a family's exits are measured with while they are trained."""

    rows: Dataset
    """Held-out, within the prompts' limit."""
    tokenizer: PreTrainedTokenizerBase
    scorer: RewardScorer
    rollout: Rollout
    before: Mapping[str, Any] | None = None
    """The measurement of the family that the training starts from, where there is one."""


@contextmanager
def measuring(
    context: StageContext, folder: Path, tokenizer: PreTrainedTokenizerBase, exits: Sequence[str]
) -> Iterator[Watch]:
    """A reward pool and a rollout back end for families of the kind in `folder`, and rows as `grpo` loads them.

    Args:
        exits: names of the exits that will be measured.

    Raises:
        Refusal: a back end that cannot run here, no prompt within the limit.
    """
    config = context.config
    held_out = load_data(config.data, config.seed, "grpo").test
    template_kwargs = config.grpo.trainer.get("chat_template_kwargs")
    rows, prompts = limit_prompts(held_out, tokenizer, config.data.max_prompt_tokens, template_kwargs)
    longest, limit = min(prompts.longest, prompts.limit), completion_limit(context)
    with (
        RewardScorer(config.reward, beat=context.heart.beat) as scorer,
        rollouts(context, folder, exits, tokenizer, longest, limit) as rollout,
    ):
        yield Watch(rows, tokenizer, scorer, rollout)


class PeriodicEvaluation(TrainerCallback):
    """Every `evaluation.every` steps measures the exits with the weights of that moment; the training does not notice.

    Not after the last step, whose family is measured once it is saved. To be called after all other callbacks.

    Args:
        trainer: a family's; keeps the best rates in its `carried`.
        watch: what is measured.
        exits: names of the trained exits.
        save_to: folder of the trained family; the best ones go to `best` in it.
        start: folder of the family that the training starts from.
        train_only: the block's.

    Metrics: `<exit>/eval/pass_rate`, `<exit>/eval/standard_error`, `<exit>/eval/greedy`, and `eval/pass_rate`, the mean
    over exits.

    Raises:
        StageFailed: (in training) an exit has fallen below its best by more than `evaluation.max_drop`, or what
            `RewardFailures` ends a stage for.
    """

    def __init__(
        self,
        context: StageContext,
        trainer: Trainer,
        watch: Watch,
        exits: Sequence[str],
        save_to: Path,
        start: Path,
        train_only: str | None = None,
    ):
        self.context, self.trainer, self.watch, self.exits, self.start = context, trainer, watch, list(exits), start
        self.frozen = None if train_only is None else self.exits
        self.families = BestFamilies(save_to / FOLDER, Path(trainer.args.output_dir), start)
        self.best = Best()
        self._fallen: str | None = None  # why the run stops when this step's checkpoint is written
        # Not the trainer's: what a judge fails on here is not to end the training earlier than without it.
        self.failures = reward_failures(context)

    def on_train_begin(self, args, state, control, **kwargs):
        keep_best, measured_at = self.context.config.keep_best, 0
        stored = self.trainer.carried.get(CARRIED)
        if stored is not None and stored["measurement"] == measurement(self.context.config):
            self.best, measured_at = Best.from_json(stored["best"]), stored["step"]
            self._judge({name: Rates(**each) for name, each in stored["now"].items()})
        elif self.watch.before is not None:
            self.best = Best().after(rates_at(0, self.watch.before["exits"]))
        if keep_best is not None:
            kept = self.best.kept(keep_best)
            ranks.on_rank_zero(lambda: self.families.go_back(kept, keep_best, state.global_step))
        # A signal may have come before that step's measurement.
        if self._due(state) and measured_at != state.global_step:
            ranks.on_rank_zero(lambda: forget_last(self.context.folder / "metrics.jsonl", state.global_step))
            if not self._evaluate(state.global_step):
                raise StepAbandoned
        self._stop()

    def on_step_end(self, args, state, control, **kwargs):
        if self._due(state) and not control.should_training_stop:
            logs = control.should_log  # which a log of the measurement takes back
            if not self._evaluate(state.global_step):
                control.should_save = control.should_training_stop = True
            # What is to stop here is saved first: the steps since the last checkpoint are worth keeping.
            control.should_save = control.should_save or self._fallen is not None
            control.should_log = logs
        return control

    def on_save(self, args, state, control, **kwargs):
        self._stop()

    def _stop(self) -> None:
        if self._fallen is not None:
            raise StageFailed(self._fallen)

    def _judge(self, now: Mapping[str, Rates]) -> None:
        max_drop = self.context.config.evaluation.max_drop
        if fallen := falls(self.best, now, max_drop):
            places = {name: self.families.family(each.step) for name, each in self.best.exits.items()}
            self._fallen = stop_message(fallen, max_drop, ranks.from_rank_zero(places))

    def _due(self, state) -> bool:
        step = state.global_step
        return 0 < step < state.max_steps and step % self.context.config.evaluation.every == 0

    def _evaluate(self, step: int) -> bool:
        """False where a signal came before the end; then nothing has changed."""
        occasion = f"held-out pass rate at step {step}"
        with self.trainer.phases("evaluation"):
            found = self._measured(occasion)
        if found is None:
            return False
        self.context.console.print(told_shortly(occasion, found["exits"]), markup=False, soft_wrap=True)
        now = rates_at(step, found["exits"])
        # Not TRL's `log`, which takes the training's open metrics with it.
        Trainer.log(self.trainer, metrics(now))
        self.best = self.best.after(now)
        if self.context.config.keep_best is not None:
            self._keep(step, self.context.config.keep_best)
        self.trainer.carried[CARRIED] = {
            "step": step,
            "measurement": found["measurement"],
            "now": {name: asdict(each) for name, each in now.items()},
            "best": self.best.as_json(),
        }
        self._judge(now)
        return True

    def _measured(self, occasion: str) -> dict[str, Any] | None:
        watch = self.watch
        with live_weights(self.trainer, watch.rollout):
            try:
                return rates(
                    self.context,
                    watch.tokenizer,
                    watch.rows,
                    watch.scorer,
                    self.failures,
                    self.exits,
                    watch.rollout,
                    occasion,
                    lambda exit, done, total: self.trainer.check_stop(),
                )
            except StepAbandoned:
                return None

    def _keep(self, step: int, keep_best: str) -> None:
        kept = self.best.kept(keep_best)
        with self.trainer.phases("save"):
            if any(each.step == step for each in kept.values()):
                folder = ranks.on_rank_zero(lambda: self.families.saving(step))
                save_live(self.trainer, folder, self.start, self.frozen)
                ranks.on_rank_zero(lambda: self.families.keep(step))
            ranks.on_rank_zero(lambda: self.families.name(kept, keep_best, step))

    def outcome(self) -> dict[str, Any]:
        """What `best_summary` is given when the training is over (JSON)."""
        return {"step": self.trainer.state.global_step, "best": self.best.as_json()}


def forget_last(path: Path, step: int) -> None:
    """Takes the measurement of a step out of `metrics.jsonl` where it stands last: an earlier attempt's, made again."""
    rows = read_metrics(path)
    if rows and rows[-1]["step"] == step and "eval/pass_rate" in rows[-1]:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows[:-1]))


def rates_at(step: int, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Rates]:
    """Exit -> its rates, from scores that are `ExitScore`s as dicts."""
    return {name: Rates.of(step, score) for name, score in scores.items()}


def metrics(now: Mapping[str, Rates]) -> dict[str, float]:
    """A measurement as a trainer logs it."""
    found = {
        f"{name}/eval/{key}": getattr(each, key)
        for name, each in now.items()
        for key in ("pass_rate", "standard_error", "greedy")
    }
    return {**found, "eval/pass_rate": mean_rate(now)}


def best_summary(
    context: StageContext, outcome: Mapping[str, Any], after: Mapping[str, Any] | None, save_to: Path, start: Path
) -> dict[str, Any]:
    """The best evaluations, the one after the training included; `best.json` is written for the last time.

    Args:
        outcome: of `PeriodicEvaluation`.
        after: the measurement of the trained family, or None.
        save_to, start: as for `PeriodicEvaluation`.

    Returns:
        `step`, the last one; `exits`: name -> the rates at its best step and the folder of that family, None where it
        was not kept; `mean`: `step`, `pass_rate` and folder of the best mean.
    """
    keep_best, last, best = context.config.keep_best, outcome["step"], Best.from_json(outcome["best"])
    if after is not None:
        best = best.after(rates_at(last, after["exits"]))
    families = BestFamilies(save_to / FOLDER, save_to, start)
    if keep_best is not None:
        ranks.on_rank_zero(lambda: families.name(best.kept(keep_best), keep_best, last, save_to))

    def told(each: Rates) -> dict[str, Any]:
        folder = save_to if each.step == last else families.family(each.step)
        return {**vars(each), "family": None if folder is None else str(folder)}

    found: dict[str, Any] = {"step": last, "exits": {name: told(each) for name, each in best.exits.items()}}
    if best.mean:
        first = told(next(iter(best.mean.values())))
        found["mean"] = {"step": first["step"], "pass_rate": mean_rate(best.mean), "family": first["family"]}
    return found


def with_ends(
    rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[Mapping[str, Any]]:
    """Rows of `metrics.jsonl`, and the measurements around the training as rows at its first and last step."""
    if not rows:
        return []
    ends = [(rows[0]["phase"], 0, before), (rows[-1]["phase"], rows[-1]["step"], after)]
    first, last = (
        [{"phase": phase, "step": step, **metrics(rates_at(step, found["exits"]))}] if found and found["exits"] else []
        for phase, step, found in ends
    )
    return [*first, *rows, *last]
