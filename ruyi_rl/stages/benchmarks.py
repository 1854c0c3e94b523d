"""The benchmarks of `stage=eval`: prepared, answered by one rollout for all or by given completions, summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ruyi_rl import ranks
from ruyi_rl.benchmarks.answers import Answers, FamilyAnswers, GivenAnswers
from ruyi_rl.benchmarks.asked import Asked
from ruyi_rl.benchmarks.completions import COMPLETIONS, completion_lines, write_completions
from ruyi_rl.benchmarks.files import files_hash, given_files, measured_files
from ruyi_rl.benchmarks.given import ByExit, answered_by_all, file_completions, reference_completions
from ruyi_rl.benchmarks.options import REFERENCE
from ruyi_rl.benchmarks.results import benchmark_result, problem_rows
from ruyi_rl.benchmarks.split import under, whole_split
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.evaluation import Measured, chosen_problems, evaluate
from ruyi_rl.execution import StageContext
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.benchmark_table import told_benchmark
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.report.routing_plot import draw_routing
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.run_folder import config_hash, flat, write_json
from ruyi_rl.stages.held_out import ScoredJudge, measurement, release_memory, reward_failures
from ruyi_rl.stages.inputs import device, load_family, load_tokenizer
from ruyi_rl.stages.rollouts import LIMITS, rollouts
from ruyi_rl.training.options import EvaluationOptions
from ruyi_rl.watchdog import watched


@dataclass(frozen=True)
class Prepared:
    """A benchmark whose rows are loaded."""

    asked: Asked
    rows: Dataset
    problems: list[int]
    """Indices of the rows that are measured."""
    left_out: int
    """Rows whose prompt is longer than the limit."""
    longest: int
    """Tokens of the longest prompt."""


@dataclass(frozen=True)
class Outcome:
    """What was measured of a benchmark; JSON in the manifest, so that a resumed stage goes on with the next one."""

    result: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    """Exit -> its `ExitScore` as a dict."""
    measurement: str
    """Hash of all that decides a measurement but the family, see `ruyi_rl.stages.held_out.measurement`."""
    family: str | None = None
    """Which family was measured, see `ruyi_rl.run_folder.fingerprint`."""
    own: bool = False
    """Whether the family itself has answered the run's own held-out rows."""


def measure_benchmarks(
    context: StageContext, asked: Sequence[Asked], exits: Sequence[str] | None, parameters: Mapping[str, int]
) -> dict[str, Outcome]:
    """Benchmark -> what came of it; those that an earlier attempt measured in the same way are kept. All ranks call it.

    Args:
        exits: of the family or, where completions are given, those who gave them; None: all of these.
        parameters: exit -> parameters that a token passes through.

    Raises:
        Refusal: rows or completions that are not there.
    """
    # Made once: a file that changes while it is measured is not what the outcome is kept under.
    keys = {each.name: _key(context, each, exits) for each in asked}
    found = {name: Outcome(**outcome) for name, key in keys.items() if (outcome := context.kept(key)) is not None}
    missing = [each for each in asked if each.name not in found]
    if missing:
        tokenizer = load_tokenizer(context.input)
        prepared = [prepare(context, each, tokenizer) for each in missing]
        with ExitStack() as stack:
            stack.enter_context(watched(context))
            if context.config.eval.completions is None:
                measured = _generated(context, stack, prepared, exits, tokenizer)
            else:
                measured = _given(context, prepared, exits, tokenizer)
            # Closed on the way out, so that a failure does not leave the terminal to a progress line.
            for each, answers, problems, names in stack.enter_context(closing(measured)):
                outcome = measure_benchmark(context, each, answers, problems, names, parameters)
                found[each.asked.name] = outcome
                _keep(context, keys[each.asked.name], outcome)
        release_memory()
    return {each.name: found[each.name] for each in asked}


def measured_before(context: StageContext, asked: Sequence[Asked]) -> dict[str, Outcome]:
    """Benchmark -> what an earlier command made of it with this very family, of those that are not asked for now."""
    kept = {
        key.split("/", 1)[1].rpartition("/")[0]: Outcome(**value)
        for key, value in context.manifest.progress.items()
        if key.startswith("benchmark/")
    }
    names = {each.name for each in asked}
    return {
        name: each for name, each in kept.items() if name not in names and each.family == context.manifest.input_hash
    }


def prepare(context: StageContext, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Loads the rows; where they are to be answered, those with too long a prompt are left out.

    Raises:
        Refusal: no rows.
    """
    config, options = context.config, asked.options
    with under(asked.block):
        needs = {column for columns in check_reward(options.reward).values() for column in columns}
        if asked.own or options.data.source != "rows":
            # As grpo loads them: the same problems are held out.
            rows = load_data(options.data, config.seed, "grpo", needs).test
        else:
            rows = load_data(whole_split(options.data), config.seed, "grpo", needs).train
        if not len(rows):
            raise Refusal("data", "has no held-out rows to measure on", "data.test, or data.holdout above 0")
        within, longest = list(range(len(rows))), 0
        if config.eval.completions is None:
            template_kwargs = config.grpo.trainer.get("chat_template_kwargs")
            # The rows keep their numbers, by which completions are told.
            numbered = rows.select_columns("prompt").add_column("row", within)
            short, report = limit_prompts(numbered, tokenizer, options.data.max_prompt_tokens, template_kwargs)
            within, longest = list(short["row"]), min(report.longest, report.limit)
    left_out = len(rows) - len(within)
    if left_out:
        context.console.print(
            f"{asked.name}: {left_out} of {len(rows)} problems are left out, their prompts are longer than "
            f"{asked.key('data.max_prompt_tokens')}={options.data.max_prompt_tokens}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    count = len(within) if options.problems is None else options.problems
    problems = [within[place] for place in chosen_problems(len(within), count, config.seed)]
    return Prepared(asked, rows, problems, left_out, longest)


def _generated(
    context: StageContext,
    stack: ExitStack,
    prepared: Sequence[Prepared],
    exits: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
):
    """Each benchmark with what answers it: one rollout for all, long enough for the longest of them."""
    longest = max(prepared, key=lambda each: each.longest + each.asked.options.max_new_tokens)
    limit = longest.asked.options.max_new_tokens
    keys = length_keys(longest.asked)
    rollout: Rollout = stack.enter_context(
        rollouts(context, context.input, exits, tokenizer, longest.longest, limit, keys)
    )
    context.heart.enter("loading the family")
    rollout.update_weights(load_family(context.input, context.config.model).to(device()).eval())
    for each in prepared:
        total = len(exits) * len(each.problems[ranks.rank() :: ranks.world_size()]) * (each.asked.options.samples + 1)
        line = ProgressLine(context.console, each.asked.occasion, total, lines=0)
        with line:
            yield each, _family_answers(context, each, rollout, tokenizer, line), each.problems, list(exits)


def length_keys(asked: Asked) -> tuple[str, ...]:
    """The keys that bound prompts and completions of a benchmark."""
    return LIMITS if asked.own else (asked.key("data.max_prompt_tokens"), asked.key("max_new_tokens"))


def _family_answers(
    context: StageContext, each: Prepared, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, line: ProgressLine
) -> Answers:
    options, config, done = each.asked.options, context.config, [0]

    def arrived(completions: int) -> None:
        done[0] += completions
        line.update(done[0])

    evaluation = EvaluationOptions(
        samples=options.samples, temperature=options.temperature, max_new_tokens=options.max_new_tokens
    )
    template_kwargs = config.grpo.trainer.get("chat_template_kwargs") or {}
    return FamilyAnswers(tokenizer, each.rows, evaluation, rollout, config.seed, template_kwargs, arrived)


def _given(
    context: StageContext,
    prepared: Sequence[Prepared],
    exits: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
):
    """Each benchmark with the completions that are given for it."""
    config = context.config
    if config.eval.completions == REFERENCE:
        given: dict[str, ByExit] = {
            each.asked.name: reference_completions(each.asked.options.data, config.seed, each.rows) for each in prepared
        }
    else:
        rows = {each.asked.name: each.rows for each in prepared}
        given = ranks.on_rank_zero(lambda: file_completions(Path(config.eval.completions), rows))
    for each in prepared:
        found = given[each.asked.name]
        names = list(exits or found)
        problems = answered_by_all(found, names, each.problems)
        if missing := len(each.problems) - len(problems):
            context.console.print(
                f"{each.asked.name}: {missing} of {len(each.problems)} problems are left out: not all of "
                f"{', '.join(names)} have answered them",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        least = min(len(found[name][problem].samples) for name in names for problem in problems)
        if (most := max(each.asked.options.pass_at or [1])) > max(least, 1):
            raise Refusal(
                each.asked.key("pass_at") if not each.asked.own else "eval.pass_at",
                f"{most} is more than the {least} given completions of a problem of {each.asked.name}",
                f"at most {least}",
            )
        yield each, GivenAnswers(tokenizer, each.rows, found), problems, names


def measure_benchmark(
    context: StageContext,
    each: Prepared,
    answers: Answers,
    problems: Sequence[int],
    exits: Sequence[str],
    parameters: Mapping[str, int],
) -> Outcome:
    """Judges the answers, and writes completions, results and routing."""
    asked, options, config = each.asked, each.asked.options, context.config
    context.heart.enter(asked.occasion)
    failures = reward_failures(context, options.reward, asked.block)
    failures.forget(lambda row: row.get("occasion") == asked.occasion)
    with RewardScorer(options.reward, beat=context.heart.beat) as scorer:
        with under(asked.block):
            ranks.on_rank_zero(scorer.start)
        judge = ScoredJudge(scorer, failures, asked.occasion)
        measured = evaluate(each.rows, problems, answers, Judge(judge, options.reward.pass_at, judge.settle), exits)
    result = ranks.on_rank_zero(lambda: _written(context, each, measured, parameters))
    context.console.print(told_benchmark(asked.name, result), markup=False, soft_wrap=True)
    scores = {name: asdict(found.score) for name, found in measured.items()}
    own = asked.own and config.eval.completions is None
    return Outcome(result, scores, measurement(config), context.manifest.input_hash, own)


def _written(
    context: StageContext, each: Prepared, measured: Mapping[str, Measured], parameters: Mapping[str, int]
) -> dict[str, Any]:
    asked, config = each.asked, context.config
    context.heart.enter(f"{asked.occasion}: intervals")
    result = benchmark_result(
        measured, parameters, asked.options.pass_at, config.eval.resamples, config.seed, context.heart.beat
    )
    result |= {"temperature": None if config.eval.completions else asked.options.temperature, "left_out": each.left_out}
    lines = completion_lines(asked.occasion, asked.name, each.rows, measured)
    write_completions(context.folder / COMPLETIONS, asked.occasion, asked.name, lines, context.redaction)
    folder = context.folder / asked.folder
    whole = {"benchmark": asked.name, **result, "rows": problem_rows(measured)}
    write_json(folder / "results.json", context.redaction.tree(whole))
    if routing := result.get("routing"):
        write_json(folder / "routing.json", routing)
        draw_routing(routing, folder / "routing.png", f"{asked.name}: what routing between exits could give")
    return result


def _keep(context: StageContext, key: str, outcome: Outcome) -> None:
    """In the place of an older one of this benchmark, whose files have been replaced."""
    progress = context.manifest.progress
    for old in [name for name in progress if name.rpartition("/")[0] == key.rpartition("/")[0]]:
        del progress[old]
    context.keep(key, asdict(outcome))


def _key(context: StageContext, asked: Asked, exits: Sequence[str] | None) -> str:
    """Names the outcome in the manifest; changes with all that decides it, for a stage may be asked for another one."""
    config = context.config
    files = [*measured_files(asked.options.data, asked.options.reward), *given_files(config)]
    tree = {
        "benchmark": asdict(asked.options),
        "own": asked.own,
        "exits": list(exits) if exits else None,
        "completions": config.eval.completions,
        "files": ranks.on_rank_zero(lambda: files_hash(files)),
        "rollout": config.rollout.backend,
        "template": config.grpo.trainer.get("chat_template_kwargs") or {},
        "resamples": config.eval.resamples,
        "seed": config.seed,
        "family": context.manifest.input_hash,
    }
    return f"benchmark/{asked.name}/{config_hash(flat(tree))}"
