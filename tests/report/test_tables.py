import io
import math

import pytest
from rich.console import Console

from ruyi_rl.report.tables import duration, number, percent, points, print_result

GRPO = {
    "stage": "grpo",
    "run": "runs/tiny/grpo",
    "seed": 3,
    "seconds": 187.4,
    "reward_failures": 0,
    "held_out": {"problems": 256, "samples": 8, "temperature": 1.0},
    "exits": {
        "1.7B": {
            "pass_before": 0.25,
            "pass_after": 0.4475,
            "greedy_before": 0.5,
            "greedy_after": 0.625,
            "reward_first": 0.2,
            "reward_last": 0.456,
        }
    },
}


def shown(summary, **options):
    console = Console(file=io.StringIO(), width=120, highlight=False)
    print_result(console, summary, **options)
    return " ".join(console.file.getvalue().split())


def test_grpo_shows_before_after_and_the_change_in_points():
    text = shown(GRPO)
    assert "│ 1.7B │ 25.0 % → 44.8 % │ +19.8 points │ 50.0 % → 62.5 % │ 0.200 → 0.456 │" in text
    assert "grpo · seed 3 · 3:07" in text and "256 problems, mean of 8 samples at temperature 1" in text
    assert "runs/tiny/grpo holds the family" in text and "Family.from_pretrained" in text


def test_the_last_stage_says_where_the_report_is(tmp_path):
    summary = GRPO | {"run": str(tmp_path / "grpo")}
    assert "report.html" not in shown(summary), "there is none"
    (tmp_path / "report.html").touch()
    assert f"{tmp_path}/report.html shows the run" in shown(summary)
    assert "report.html" not in shown(summary, last=False)


def test_grpo_without_an_evaluation_shows_the_rewards():
    exits = {"1.7B": {"reward_first": None, "reward_last": 0.5}}
    text = shown({**GRPO, "exits": exits, "held_out": None})
    assert "│ 1.7B │ – → 0.500 │" in text and "pass rate" not in text


def test_the_training_s_time_is_told_by_phase():
    shares = {"save": 0.004, "update": 0.3, "rollout": 0.61, "other": 0.086}
    phases = {name: {"seconds": 100 * share, "share": share} for name, share in shares.items()}
    assert "time in training: rollout 61 %, update 30 %, other 9 %" in shown({**GRPO, "phases": phases})
    assert "time in" not in shown({**GRPO, "phases": {}}) and "time in" not in shown(GRPO)


def test_an_exit_that_was_better_before_the_last_step_is_told_with_its_family():
    def score(rate, step=None, **more):
        return {"pass_rate": rate, "standard_error": 0.02, "greedy": rate, **({"step": step} if step else {}), **more}

    held_out = {**GRPO["held_out"], "exits": {"1.7B": score(0.5), "8B": score(0.7)}}
    best = {
        "step": 20,
        "exits": {"1.7B": score(0.62, 10, family="runs/tiny/grpo/best/step-10"), "8B": score(0.7, 20, family="x")},
        "mean": {"step": 15, "pass_rate": 0.65, "family": None},
    }
    said = " ".join(shown({**GRPO, "held_out": held_out, "best": best}).split())
    assert "1.7B was better at step 10: 62.0 ± 2.0 %, now 50.0 %; kept in runs/tiny/grpo/best/step-10" in said
    assert "the mean over exits was better at step 15: 65.0 %, now 60.0 %; not kept" in said
    assert "8B was better" not in said and "was better" not in shown(GRPO)


def test_failed_rewards_are_said():
    assert "12 completions could not be scored" in shown({**GRPO, "reward_failures": 12})


@pytest.mark.parametrize("evaluated", [True, False])
def test_sft_shows_loss_accuracy_and_pass_rates(evaluated):
    exit = {"loss_first": 5.0, "loss_last": 0.5, "accuracy_first": 0.1, "accuracy_last": 0.75}
    if evaluated:
        exit |= {"pass": 0.125, "greedy": 0.25}
    text = shown({"stage": "sft", "run": "runs/x/sft", "seed": 1, "seconds": 1, "exits": {"1.7B": exit}})
    assert "5.000 → 0.500 │ 0.100 → 0.750" in text
    assert ("│ 12.5 % │ 25.0 %" in text) == evaluated
    assert "Next: python -m ruyi_rl stage=grpo with the same options" in text


def test_what_is_next_after_a_start_from_another_family_names_this_one():
    exit = {"loss_first": 5.0, "loss_last": 0.5, "accuracy_first": 0.1, "accuracy_last": 0.75}
    text = shown(of("sft", {"1.7B": exit}, start_from="runs/other/sft"))
    assert "Next: python -m ruyi_rl stage=grpo start_from=runs/x/sft and the other options" in text


def test_init_shows_the_branches_and_only_the_last_stage_says_what_is_next():
    exits = {"8B": {"k": 21, "layers": 22, "parameters": 8_045_000_000}}
    summary = {"stage": "init", "run": "runs/x/init", "seed": 1, "seconds": 3700, "exits": exits}
    text = shown(summary, last=False)
    assert "│ 8B │ 21 │ 22 │ 8,045,000,000 │" in text and "1:01:40" in text and "Next" not in text
    assert "Next: python -m ruyi_rl stage=sft" in shown(summary)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_was_not_measured_is_a_dash(missing):
    assert number(missing) == percent(missing) == points(missing, 0.5) == points(0.5, missing) == "–"


def test_names_with_brackets_are_shown_as_they_are():
    assert "runs/[b]/grpo" in shown({**GRPO, "run": "runs/[b]/grpo", "exits": {"[red]x": GRPO["exits"]["1.7B"]}})


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599.6, "1:00:00"), (7265, "2:01:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def of(stage, exits, **values):
    return {"stage": stage, "run": f"runs/x/{stage}", "seed": 1, "seconds": 1, "exits": exits, **values}


def test_expand_shows_the_branches_and_what_is_trained_of_the_new_one():
    exits = {"small": {"k": 1, "layers": 5, "parameters": 1000}, "large": {"k": 7, "layers": 8, "parameters": 1600}}
    held_out = {"problems": 256, "samples": 8, "temperature": 1.0}
    text = shown(of("expand", exits, exit="small", blocks=3, trained_share=0.5000007, held_out=held_out))
    assert "│ small │ 1 │ 5 │ 1,000 │" in text and "│ large │ 7 │ 8 │ 1,600 │" in text
    assert "small has 3 new blocks and computes what it did; train_only=expansion trains 50.0 % of its branch" in text
    assert "256 problems" not in text  # nothing of it stands in this table
    assert (
        "holds the family, its tokenizer and summary.json" in text
        and "Next: python -m ruyi_rl stage=expanded_sft start_from=" in text
    )
    assert "has 1 new block and" in shown(of("expand", exits, exit="small", blocks=1, trained_share=0.5))


COMPRESSED = {
    "pass_before": 0.5,
    "pass_compressed": 0.45,
    "pass_after": 0.495,
    "parameters_before": 1_000_000,
    "parameters_after": 710_000,
    "bytes_before": 4_000_000,
    "bytes_after": 2_840_000,
}


def test_compress_shows_what_is_kept_and_what_is_saved():
    sizes = "1,000,000 → 710,000 │ 4 MB → 2.84 MB │"
    text = shown(of("compress", {"small": COMPRESSED}, recover_steps=50))
    assert f"│ small │ 50.0 % │ 45.0 % (90.0 %) │ 49.5 % (99.0 %) │ {sizes}" in text and "recovered (kept)" in text
    assert (
        "Next: python -m ruyi_rl stage=eval start_from=" in text
        and "matrices.json, metrics.jsonl and curves.png." in text
    )
    text = shown(of("compress", {"small": {**COMPRESSED, "pass_after": 0.45}}, recover_steps=0))
    assert f"│ small │ 50.0 % │ 45.0 % (90.0 %) │ {sizes}" in text and "summary.json and matrices.json." in text


@pytest.mark.parametrize("recover_steps", [0, 50])
def test_compress_without_an_evaluation_shows_the_sizes(recover_steps):
    exit = {key: value for key, value in COMPRESSED.items() if not key.startswith("pass")}
    text = shown(of("compress", {"small": exit}, recover_steps=recover_steps))
    assert "│ small │ 1,000,000 → 710,000 │" in text and "held-out" not in text


def test_an_exit_that_solved_nothing_keeps_no_share():
    exit = {**COMPRESSED, "pass_before": 0.0, "pass_compressed": 0.0}
    assert "│ 0.0 % │ 0.0 % (–) │" in shown(of("compress", {"small": exit}))


def test_eval_shows_rates_sizes_and_the_history_and_names_the_family_it_is_of():
    size = {"layers": 5, "parameters": 710_000, "bytes": 2_840_000}
    rates = {"pass": 0.48, "pass_standard_error": 0.0125, "greedy": 0.5, "mean_tokens": 12.34, "truncated": 0.02}
    place = {"stage": "sft", "exit": "small", "unchanged": False, "comparable": True, "measured_by": "sft", **size}
    row = {**place, "pass_rate": 0.31, "standard_error": None, "greedy": None}
    history = {"expanded": ["small"], "measurement": "x", "stopped": None, "rows": [row]}
    values = {"history": history, "family": "runs/x/compress"}
    text = shown(of("eval", {"small": {**rates, **size}}, **values))
    assert "│ small │ 48.0 ± 1.2 % │ 50.0 % │ 12.3 │ 2.0 % │ 5 │ 710,000 │ 2.84 MB │" in text
    assert "│ sft │ 5 │ 710,000 │ 2.84 MB │ 31.0 % │" in text
    assert "runs/x/eval holds summary.json, history.json and history.png" in text
    assert "stage=generate start_from=runs/x/compress" in text
    assert "│ small │ 5 │ 710,000 │ 2.84 MB │" in shown(of("eval", {"small": size}, **values))
