"""Each exit's best so far, the falls below it, and what a stopped run says."""

import json
import math
import random
from pathlib import Path

import pytest

from ruyi_rl.training.quality import Best, Fall, Rates, falls, mean_rate, stop_message


def at(step, error=0.01, **pass_rates):
    return {name: Rates(step, rate, error, rate / 2) for name, rate in pass_rates.items()}


def steps(rates):
    return {name: each.step for name, each in rates.items()}


def test_each_exit_has_its_own_best_and_the_mean_has_one_step():
    best = Best()
    for now in (at(0, small=0.2, large=0.4), at(5, small=0.5, large=0.3), at(10, small=0.1, large=0.6)):
        best = best.after(now)
    assert steps(best.kept("exit")) == {"small": 5, "large": 10}
    assert steps(best.kept("mean")) == {"small": 5, "large": 5}
    assert best.exits["small"].greedy == 0.25 and mean_rate(best.mean) == pytest.approx(0.4)


def test_the_best_is_the_earliest_highest_in_any_history():
    draw = random.Random(0)
    for _ in range(50):
        history = [draw.choice([0.0, 0.25, 0.5, math.nan]) for _ in range(8)]
        best = Best()
        for step, rate in enumerate(history):
            best = best.after(at(step, small=rate))
        numbers = [rate for rate in history if not math.isnan(rate)]
        if numbers:
            assert best.exits["small"].step == best.mean["small"].step == history.index(max(numbers))
        else:
            assert best == Best()


def test_an_exit_that_could_not_be_judged_makes_no_mean_and_no_fall():
    best = Best().after(at(0, small=0.9, large=0.5))
    now = at(5, small=math.nan, large=1.0)
    assert falls(best, now, 0.01) == []
    assert steps(best.after(now).kept("mean")) == {"small": 0, "large": 0}
    assert steps(best.after(now).kept("exit")) == {"small": 0, "large": 5}


def test_only_more_than_the_allowed_drop_below_the_best_is_a_fall():
    best = Best().after(at(0, small=0.5, large=0.5)).after(at(5, small=0.75, large=0.25))
    now = at(10, small=0.5, large=0.375)
    assert falls(best, now, 0.25) == [] == falls(best, now, None)
    assert [fall.exit for fall in falls(best, now, 0.2)] == ["small"]
    assert [fall.exit for fall in falls(best, now, 0.1)] == ["small", "large"]
    assert falls(Best(), now, 0.1) == [] == falls(best.after(at(6, small=0.1)), at(7, new=0.0), 0.1)


def test_what_a_checkpoint_holds_is_read_back():
    best = Best().after(at(0, small=0.2, large=math.nan)).after(at(5, small=0.1, large=0.7))
    assert Best.from_json(json.loads(json.dumps(best.as_json()))) == best
    assert Best.from_json(Best().as_json()) == Best()


def test_a_stopped_run_says_what_fell_how_far_where_the_best_is_and_what_to_change():
    fall = Fall("small", Rates(20, 0.62, 0.02, 0.7), Rates(35, 0.5, 0.02, 0.6))
    said = stop_message([fall], 0.1, {"small": Path("runs/x/grpo/best/step-20")})
    assert said.startswith(
        "small: held-out pass rate 50.0 ± 2.0 % at step 35, 12.0 points below its best of 62.0 ± 2.0 % at step 20 "
        "(that family: kept in runs/x/grpo/best/step-20). evaluation.max_drop=0.1 stops the run there."
    )
    assert "start_from=runs/x/grpo/best/step-20" in said and "evaluation.max_drop=null" in said
    assert "noise" not in said
    said = stop_message([fall], 0.05, {"small": None})
    assert "not kept; keep_best=exit keeps it" in said and "start_from" not in said
    assert "a standard error of up to 2.8 points" in said
