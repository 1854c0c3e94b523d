"""`stage=eval`: benchmarks, or held-out rows, at a family's exits, and what each stage before made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.benchmarks.asked import asked_benchmarks
from ruyi_rl.benchmarks.cost import passed_parameters
from ruyi_rl.execution import StageContext
from ruyi_rl.family import FamilyConfig
from ruyi_rl.family.stored import StoredFamily, stored_family
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.report.history_plot import draw_history
from ruyi_rl.rewards.failures import failure_counts
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.benchmarks import Outcome, measure_benchmarks, measured_before
from ruyi_rl.stages.harness import harness_scores, harness_work, published_beside
from ruyi_rl.stages.held_out import reward_failures
from ruyi_rl.stages.history import history


def run(context: StageContext) -> dict[str, Any]:
    """Measures benchmarks, or the run's own held-out rows; leaves no family."""
    try:
        stored = stored_family(context.input)
    except (OSError, ValueError) as error:
        raise Refusal(str(context.input), f"holds no family that can be measured: {error}") from error
    options = context.config.eval
    given = options.completions is not None
    exits = measured_exits(stored.config, None if given else options.exits)
    parameters = {name: passed_parameters(stored, name) for name in exits}
    asked = asked_benchmarks(context.config)
    tasks = harness_work(context, exits)
    if not asked and tasks is None:
        told = "nothing is measured: evaluation.problems=0, and benchmark= and eval.harness.tasks name nothing"
        context.console.print(told, style="yellow", markup=False, soft_wrap=True)
    outcomes = measure_benchmarks(context, asked, options.exits if given else exits, parameters)
    outcomes |= measured_before(context, asked)
    held_out = own_scores(outcomes, exits)
    harness = harness_scores(context, tasks)
    counts = failure_counts(reward_failures(context).path, "evaluation")
    summary = {
        "family": str(context.input),
        "exits": {name: exit_summary(stored, name, held_out) for name in exits},
        **({"held_out": held_out} if held_out else {}),
        **({"benchmarks": {name: each.result for name, each in outcomes.items()}} if outcomes else {}),
        **({"harness": harness} if harness else {}),
        "reward_failures": sum(sum(kinds.values()) for kinds in counts.values()),
        "history": ranks.on_rank_zero(lambda: _history(context, held_out)),
    }
    return summary | published_beside(summary, stored.config)


def measured_exits(config: FamilyConfig, chosen: Sequence[str] | None) -> list[str]:
    """Names of the exits that `eval.exits` chooses, shallowest first; none: all.

    Raises:
        Refusal: an exit that the family has not.
    """
    for name in chosen or ():
        if name not in config.exits:
            raise Refusal("eval.exits", f"no exit {name!r} in this family", nearest(name, config.exits))
    return [name for name in config.exits if not chosen or name in chosen]


def own_scores(outcomes: Mapping[str, Outcome], exits: Sequence[str]) -> dict[str, Any] | None:
    """The exits' scores on the run's own held-out rows, as the other stages tell theirs; None where these were not
    measured, or not at all of these exits."""
    own = next((each for each in outcomes.values() if each.own and set(exits) <= set(each.scores)), None)
    if own is None:
        return None
    return {
        "measurement": own.measurement,
        **{key: own.result[key] for key in ("problems", "samples", "temperature")},
        "exits": {exit: own.scores[exit] for exit in exits},
    }


def exit_summary(stored: StoredFamily, exit: str, held_out: dict[str, Any] | None) -> dict[str, Any]:
    """One exit's size and, where it was measured, its scores."""
    size = stored.size(exit)
    values: dict[str, Any] = {"layers": size.layers, "parameters": size.parameters, "bytes": size.bytes}
    if held_out is None:
        return values
    score = held_out["exits"][exit]
    return {
        "pass": score["pass_rate"],
        "pass_standard_error": score["standard_error"],
        **{key: score[key] for key in ("greedy", "mean_tokens", "truncated")},
        **values,
    }


def _history(context: StageContext, held_out: dict[str, Any] | None) -> dict[str, Any]:
    found = history(context.input, held_out)
    write_json(context.folder / "history.json", found)
    draw_history(found, context.folder / "history.png", f"{context.config.name}: what each stage made of the exits")
    return found
