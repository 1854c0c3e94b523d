"""One reward of several functions, against TRL's own formulas and by hand."""

import ast
import inspect
import math
import random
import textwrap
from types import SimpleNamespace

import pytest
import torch
from trl.trainer import grpo_trainer
from trl.trainer.utils import nanstd

from ruyi_rl.rewards.composition import (
    Composition,
    compose,
    composed_rewards,
    function_rewards,
    reward_tensor,
    state_tensor,
    states_of,
)
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.scored import Scored, State
from ruyi_rl.training.advantages import group_advantages, normalized_advantages

S, A, F, C, U = State.SCORED, State.ABSTAINED, State.FAILED, State.CLOSED, State.UNDECIDED
NAN = math.nan


def total(rewards, states, weights, clips=None, clip=None):
    composition = Composition(tuple(weights), tuple(clips or [None] * len(weights)), clip)
    return compose(torch.tensor(rewards), torch.tensor(states), composition)


def trls(rewards: torch.Tensor, weights: torch.Tensor, aggregation: str, samples: int, scale: str = "group"):
    """(rewards, advantages) by the very statements of TRL's trainer."""
    source = textwrap.dedent(inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions))
    body = ast.parse(source).body[0].body
    texts = [ast.unparse(node) for node in body]
    first = next(at for at, text in enumerate(texts) if text.startswith("unscorable_mask ="))
    last = next(at for at, text in enumerate(texts) if text.startswith("advantages = torch.nan_to_num("))
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        reward_weights=weights,
        scale_rewards=scale,
        reward_funcs=[None] * len(weights),
    )
    names = {
        "torch": torch,
        "nanstd": nanstd,
        "self": trainer,
        "rewards_per_func": rewards,
        "num_generations": samples,
        "device": "cpu",
    }
    exec(compile(ast.Module(body[first : last + 1], []), "trl", "exec"), names)  # noqa: S102
    return names["rewards"], names["advantages"]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("seed", range(5))
def test_without_failures_and_gates_it_is_trls_sum(aggregation, seed):
    torch.manual_seed(seed)
    prompts, samples, functions = 6, 8, 3
    rewards = torch.randn(prompts * samples, functions)
    rewards[torch.rand_like(rewards) < 0.25] = NAN
    rewards[3] = NAN
    weights = torch.tensor([1.0, 0.3, -0.7])
    composition = Composition(tuple(weights.tolist()), (None,) * functions)
    found = compose(rewards, states_of(rewards), composition)
    ids = torch.arange(prompts).repeat_interleave(samples)
    exit_ids = torch.zeros_like(ids)
    theirs, advantages = trls(rewards, weights, aggregation, samples)
    if aggregation == "sum_then_normalize":
        torch.testing.assert_close(found.rewards, theirs, rtol=0, atol=0, equal_nan=True)
        ours = group_advantages(found.rewards, ids, exit_ids, "group")
    else:
        columns = found.columns.masked_fill(found.rewards.isnan()[:, None], NAN)
        ours = normalized_advantages(columns, weights, ids, exit_ids)
    torch.testing.assert_close(ours, advantages, rtol=1e-4, atol=1e-5)
    assert ours[3] == 0


def test_a_failure_is_not_a_zero():
    """Where another function scored, TRL's nansum would have given the failed one's share of 0."""
    found = total([[1.0, NAN], [1.0, 0.5], [NAN, 0.5]], [[S, F], [S, S], [A, S]], [1.0, 1.0])
    assert found.rewards.isnan().tolist() == [True, False, False]
    assert found.rewards[1:].tolist() == [1.5, 0.5]


def test_a_left_out_completion_neither_moves_nor_is_moved():
    states = [[S, S], [S, S], [S, F], [S, S]]
    rewards = [[1.0, 1.0], [0.0, 1.0], [1.0, NAN], [0.0, 1.0]]
    ids = torch.zeros(4, dtype=torch.int64)
    found = group_advantages(total(rewards, states, [1.0, 0.2]).rewards, ids, ids, "none")
    without = total([rewards[row] for row in (0, 1, 3)], [states[row] for row in (0, 1, 3)], [1.0, 0.2])
    alone = group_advantages(without.rewards, ids[:3], ids[:3], "none")
    assert found[2] == 0
    torch.testing.assert_close(found[[0, 1, 3]], alone)


@pytest.mark.parametrize(
    "states, weights, expected",
    [
        ([S, S], [1.0, 0.0], 0.5),
        ([S, F], [1.0, 0.0], 0.5),  # the watched function failed: nothing is lost
        ([S, U], [1.0, 0.0], 0.5),
        ([F, S], [1.0, 0.0], None),
        ([A, S], [1.0, 0.0], None),  # the watched function alone has scored: nothing is known
        ([A, A], [1.0, 1.0], None),
        ([S, A], [1.0, 1.0], 0.5),
        ([S, C], [1.0, 1.0], 0.5),
        ([S, C], [0.0, 1.0], 0.0),  # a gate of weight 0 that did not open: a reward of 0, not "unknown"
        ([F, U], [0.0, 1.0], None),
        ([A, A], [0.0, 1.0], None),
        ([A, C], [1.0, 2.0], 0.0),
    ],
)
def test_who_is_left_out(states, weights, expected):
    values = [[0.5 if state is S else NAN for state in states]]
    found = total(values, [states], weights).rewards.item()
    assert math.isnan(found) if expected is None else found == expected


def test_clips_of_a_function_come_before_its_weight_and_that_of_the_sum_last():
    values = [[5.0, -5.0], [0.25, 0.25], [-5.0, 5.0], [NAN, 0.5]]
    found = total(values, [[S, S]] * 3 + [[A, S]], [2.0, 1.0], clips=[[0.0, 1.0], [-0.5, 0.5]], clip=[0.0, 1.6])
    assert found.rewards.tolist() == pytest.approx([1.5, 0.75, 0.5, 0.5])
    assert found.columns[:3].tolist() == [[1.0, -0.5], [0.25, 0.25], [0.0, 0.5]]
    capped = total([[1.0, 1.0]], [[S, S]], [1.0, 1.0], clip=[0.0, 1.6])
    assert capped.rewards.item() == pytest.approx(1.6)


def test_behind_a_closed_gate_is_0_even_where_the_clip_does_not_reach_it():
    found = total([[0.0, NAN]], [[S, C]], [1.0, 1.0], clips=[None, [0.5, 1.0]])
    assert found.rewards.item() == 0.0 and found.columns.tolist() == [[0.0, 0.0]]


def test_what_a_state_hides_does_not_count():
    found = total([[9.0, 9.0, 9.0, 1.0]], [[A, C, A, S]], [1.0] * 4)
    assert found.rewards.item() == 1.0


def scored(rewards, states, names=("a", "b")):
    return Scored(tuple(names), rewards, states, [], {}, {}, {})


def test_from_scores_to_lists():
    options = RewardOptions(
        functions={"a": RewardFunctionOptions(weight=2.0), "b": RewardFunctionOptions(clip=[0.0, 1.0])}
    )
    rows = scored([[1.0, 3.0], [None, 1.0], [0.5, None], [None, None]], [[S, S], [F, S], [S, C], [A, A]])
    assert composed_rewards(options, rows) == [3.0, None, 1.0, None]
    assert function_rewards(rows, "b") == [3.0, 1.0, 0.0, None]
    assert reward_tensor(rows).isnan().tolist() == [[False, False], [True, False], [False, True], [True, True]]
    empty = scored([], [])
    assert reward_tensor(empty).shape == state_tensor(empty).shape == (0, 2)
    assert composed_rewards(options, empty) == []


def test_rewards_of_float64_python_numbers_are_those_of_trl():
    """TRL makes float32 of each function's numbers before it sums them."""
    draw = random.Random(0)
    numbers = [[draw.random() for _ in range(3)] for _ in range(50)]
    options = RewardOptions(functions={name: RewardFunctionOptions(weight=w) for name, w in zip("abc", (1, 0.2, 0.1))})
    ours = composed_rewards(options, scored(numbers, [[S] * 3] * 50, "abc"))
    theirs = (torch.tensor(numbers, dtype=torch.float32) * torch.tensor([1, 0.2, 0.1])).nansum(dim=1)
    assert ours == theirs.tolist()
