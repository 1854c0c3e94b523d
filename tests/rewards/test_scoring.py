"""The functions of a group on a batch: gates, scopes, parts, failures."""

import itertools
import random
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.results import RewardError
from ruyi_rl.rewards.scored import State
from ruyi_rl.rewards.scoring import RewardScorer, check_start
from tests.rewards.fake_pool import Kind, group_of

S, A, F, C, U = State.SCORED, State.ABSTAINED, State.FAILED, State.CLOSED, State.UNDECIDED


def number(completion, row):
    """The completion's number; `none` abstains, a word fails with that kind."""
    if completion == "none":
        return None
    if not completion.lstrip("-").replace(".", "").isdigit():
        raise Kind(completion)
    return float(completion)


def half(completion, row):
    return 0.5


def column(scored, name, of="rewards"):
    return [row[scored.names.index(name)] for row in getattr(scored, of)]


def test_several_functions_and_what_they_log():
    options, make, pools = group_of(a=(number, {}), b=(half, {}))
    with RewardScorer(options, make) as scorer:
        scored = scorer.score(["1", "nan", "none", "0.25"], {"answer": ["p", "q", "r", "s"], "state": 7})
    assert scored.names == ("a", "b")
    assert column(scored, "a") == [1.0, None, None, 0.25] and column(scored, "b") == [0.5] * 4
    assert column(scored, "a", "states") == [S, F, A, S]
    assert [(f.index, f.function, f.kind, f.message, f.place) for f in scored.failures] == [
        (1, "a", "nan", "at nan", "plugin.py:7")
    ]
    assert scored.extra["b/seen"] == ["b: 1", "b: nan", "b: none", "b: 0.25"]
    assert scored.metrics == {"a/rows": [4.0], "b/rows": [4.0]}
    assert pools["a"].calls[0][1] == {"answer": ["p", "q", "r", "s"], "state": 7}
    assert all(pool.closed for pool in pools.values())


@pytest.mark.parametrize(
    "gate_on, asked, states",
    [("passed", ["1", "2"], [S, C, A, U, S]), ("failed", ["0.5", "none"], [C, S, S, U, C])],
)
def test_a_gated_function_is_asked_only_where_its_gate_says(gate_on, asked, states):
    # The gated one stands first in the config: the order of calls is that of the gates.
    options, make, pools = group_of(b=(half, {"gate": "a", "gate_on": gate_on}), a=(number, {}))
    with RewardScorer(options, make) as scorer:
        scored = scorer.score(["1", "0.5", "none", "timeout", "2"], {"answer": list("pqrst")})
    assert pools["b"].asked == asked and column(scored, "b", "states") == states
    assert [reward is not None for reward in column(scored, "b")] == [state is S for state in states]
    row_of = dict(zip(["1", "0.5", "none", "timeout", "2"], "pqrst"))
    assert pools["b"].calls[0][1] == {"answer": [row_of[completion] for completion in asked]}
    assert [value is not None for value in scored.extra["b/seen"]] == [state is S for state in states]


def test_gates_behind_gates():
    options, make, pools = group_of(
        a=(number, {}),
        b=(lambda completion, row: float(completion) - 1, {"gate": "a"}),
        c=(half, {"gate": "b"}),
        d=(half, {"gate": "b", "gate_on": "failed"}),
    )
    with RewardScorer(options, make) as scorer:
        scored = scorer.score(["0", "1", "2", "none", "crash"], {})
    assert [list(map(State, row)) for row in scored.states] == [
        [S, C, C, S],
        [S, S, C, S],
        [S, S, S, C],
        [A, A, A, S],
        [F, U, U, U],
    ]
    assert pools["c"].asked == ["2"]


def test_a_failure_behind_a_gate_is_placed_in_the_batch():
    options, make, _ = group_of(a=(lambda completion, row: row["right"], {}), b=(number, {"gate": "a"}))
    with RewardScorer(options, make) as scorer:
        scored = scorer.score(["crash", "crash", "1", "nan"], {"right": [0, 1, 1, 1]})
    assert [(failure.index, failure.kind) for failure in scored.failures] == [(1, "crash"), (3, "nan")]


def test_nobody_is_asked_behind_a_gate_that_nobody_passes():
    options, make, pools = group_of(a=(number, {}), b=(half, {"gate": "a"}))
    with RewardScorer(options, make) as scorer:
        assert column(scorer.score(["0", "0"], {}), "b", "states") == [C, C]
        assert scorer.score([], {}).rewards == []
    assert pools["b"].calls == []


@pytest.mark.parametrize("seed", range(4))
def test_parts_in_any_order_equal_the_whole_and_each_completion_is_scored_once(seed):
    def rank(completion, row):
        return row["level"] / 7 + len(completion)

    fields = {
        "a": (number, {}),
        "b": (rank, {"gate": "a", "gate_on": "failed", "scope": "group"}),
        "c": (rank, {"scope": "batch"}),
        "d": (half, {"gate": "c"}),
    }
    rows = 40
    draw = random.Random(seed)
    completions = [draw.choice(["1", "0", "none", "crash", "0.3"]) for _ in range(rows)]
    levels, groups = list(range(rows)), [row // 4 for row in range(rows)]
    options, make, _ = group_of(**fields)
    with RewardScorer(options, make) as scorer:
        whole = scorer.score(completions, {"level": levels}, groups)
    options, make, pools = group_of(delay=0.004, **fields)
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, groups)
        order = draw.sample(range(10), 10)
        while order:
            taken, order = order[:2], order[2:]
            part = [row for group in taken for row in range(4 * group, 4 * group + 4)]
            scoring.add(part, [completions[row] for row in part], level=[levels[row] for row in part])
        parts = scoring.result()
        assert scoring.overlapped(float("inf")) > 0 == scoring.overlapped(0)
    assert (parts.rewards, parts.states, parts.failures) == (whole.rewards, whole.states, whole.failures)
    assert parts.extra == whole.extra
    assert sum(parts.metrics["a/rows"]) == rows
    for name, pool in pools.items():
        expected = [c for c, state in zip(completions, column(whole, name, "states")) if state in (S, A, F)]
        assert sorted(pool.asked) == sorted(expected)
        if name == "b":
            assert all(len(set(called)) <= 2 for _, _, called in pool.calls)
    assert len(pools["c"].calls) == 1, "a function of the whole batch is called once, with all of it"


def test_logged_numbers_stand_in_the_order_of_the_completions():
    options, make, _ = group_of(a=(number, {}))
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, list(range(6)))
        for part in ([3, 4, 5], [1, 2], [0]):
            scoring.add(part, ["1"] * len(part))
        assert scoring.result().metrics == {"a/rows": [1.0, 2.0, 3.0]}


def test_overlap_counts_time_once():
    options, make, _ = group_of(a=(number, {}))
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, [])
    scoring.spans[:] = [(5.0, 9.0), (0.0, 2.0), (1.0, 3.0), (6.0, 7.0)]
    assert [scoring.overlapped(moment) for moment in (-1.0, 1.5, 4.0, 6.5, 20.0)] == [0.0, 1.5, 3.0, 4.5, 7.0]


def test_rows_are_taken_once_and_all_are_needed():
    options, make, _ = group_of(a=(number, {}))
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, [0, 0])
        scoring.add([1], ["1"])
        assert scoring.missing == [0]
        with pytest.raises(ValueError, match=r"rows \[0\]"):
            scoring.result()
        with pytest.raises(ValueError, match=r"\[1\] were added twice"):
            scoring.add([0, 1], ["1", "1"])


def test_only_some_functions_and_the_gates_that_they_need():
    options, make, pools = group_of(
        other=(half, {}), last=(half, {"gate": "middle"}), middle=(half, {"gate": "first"}), first=(number, {})
    )
    with RewardScorer(options, make) as scorer:
        assert scorer.score(["1"], {}, only=["last"]).names == ("last", "middle", "first")
        assert scorer.score(["1"], {}, only=["first"]).names == ("first",)
    assert pools["other"].calls == []


def test_the_judge_is_the_named_one_or_the_only_one_or_all():
    options, make, _ = group_of(a=(half, {}), b=(half, {}))
    with RewardScorer(options, make) as scorer:
        assert scorer.judges == ("a", "b")
        scorer.options.judge = "b"
        assert scorer.judges == ("b",)


def test_cancelling_takes_back_what_waits_and_begins_nothing_more():
    held, entered = threading.Event(), threading.Event()

    def slow(completion, row):
        entered.set()
        held.wait(10)
        return 1.0

    options, make, pools = group_of(a=(slow, {}), b=(half, {"gate": "a"}))
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, list(range(20)))
        for row in range(20):
            scoring.add([row], ["1"])
        entered.wait(10)
        scoring.cancel()
        held.set()
        with pytest.raises(CancelledError):
            scoring.result()
    assert len(pools["a"].calls) <= 4 and pools["b"].calls == []


def test_a_pool_that_cannot_start_is_an_error_of_the_batch_and_a_refusal_at_the_start():
    options, make, pools = group_of(a=(number, {}), b=(half, {"gate": "a"}))
    with RewardScorer(options, make) as scorer:
        pools["b"].broken = "b: cannot start: no sandbox here"
        with pytest.raises(RewardError, match="no sandbox here"):
            scorer.score(["1"], {})
        with pytest.raises(Refusal, match="no sandbox here") as caught:
            scorer.start()
    assert caught.value.key == "reward.functions.b"


def test_an_error_of_the_asking_comes_with_the_result():
    options, make, _ = group_of(a=(number, {}))
    with RewardScorer(options, make) as scorer:
        scoring = scorer.begin({}, {}, [0])
    scoring.add([0], ["1"])  # the pool is closed
    with pytest.raises(RuntimeError, match="shutdown"):
        scoring.result()


def test_pools_are_closed_where_one_cannot_be_made():
    options, make, pools = group_of(a=(number, {}), b=(half, {}))

    def failing(name, *arguments):
        if name == "b":
            raise Refusal("workers", "none")
        return make(name, *arguments)

    with pytest.raises(Refusal):
        RewardScorer(options, failing)
    assert pools["a"].closed


def test_limits_come_from_the_options():
    fields = {"timeout": 3.0, "workers": 2, "memory_gb": 1.5, "scope": "group"}
    options, make, pools = group_of(a=(number, fields))
    with RewardScorer(options, make):
        limits = pools["a"].limits
        assert {name: getattr(limits, name) for name in fields} == fields


def test_importing_it_imports_no_torch():
    code = (
        "import sys, ruyi_rl.rewards.scoring, ruyi_rl.rewards.failures\n"
        "print([name for name in ('torch', 'trl', 'sympy', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_shipped_functions_in_real_pools():
    from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions

    options = RewardOptions(
        functions={
            "math": RewardFunctionOptions(path="rewards/math_answer.py", workers=1, weight=0.0),
            "form": RewardFunctionOptions(path="rewards/format.py", workers=1, gate="math", kwargs={"mode": "tags"}),
        }
    )
    check_start(options)
    texts = [r"<think>\boxed{5}", r"<think></think>\boxed{5}", r"\boxed{6}"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    with RewardScorer(options) as scorer:
        scored = scorer.score(chats, {"answer": ["5", "5", "5"], "prompts": ["p"] * 3})
        alone = scorer.functions[1](completions=texts, prompts=["p"] * 3)
    assert column(scored, "math") == [0.0, 1.0, 0.0] and column(scored, "form", "states") == [C, S, C]
    assert column(scored, "form")[1] == 0.5 and alone == [0.25, 0.5, 0.0]
    assert list(itertools.chain(*scored.states)).count(F) == 0
