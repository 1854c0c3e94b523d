"""The contract's checks: each finds what it is for, and lets an honest function pass."""

import inspect

import pytest

from ruyi_rl.rewards import contract
from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.contract import ODD, REMEDIES
from ruyi_rl.rewards.pool import KINDS, RewardFailure, Scores
from ruyi_rl.rewards.samples import Samples
from ruyi_rl.rewards.trial import compare

COUNT = 30
KEY = "reward.functions.mine"


class Calls:
    """A pool whose every call is one call of a function, in this process."""

    def __init__(self, function, worker=0):
        self.function, self.worker, self.sizes = function, worker, []

    def start(self):
        pass

    def score(self, completions, columns, groups=None):
        self.sizes.append(len(completions))
        rewards = self.function(completions=completions, worker=self.worker, **columns)
        if len(rewards) != len(completions):
            failures = [RewardFailure(i, "wrong_length", "too short", "mine.py:1") for i in range(len(completions))]
            return Scores([None] * len(completions), failures)
        return Scores(rewards, seconds=0.001)


@pytest.fixture
def samples():
    columns = {
        "prompts": [f"prompt {place // 2}" for place in range(COUNT)],
        "exit": ["large"] * COUNT,
        "answer": [str(place) for place in range(COUNT)],
    }
    return Samples([f"{'so ' * (place % 7)}{place}" for place in range(COUNT)], columns, ["reference"] * COUNT)


def outcomes(function, samples, scope="sample"):
    """Check -> outcome, of `compare` with two workers of this function."""
    verdicts, _ = compare(Calls(function), Calls(function, worker=1), samples, scope, KEY)
    assert all(verdict.remedy for verdict in verdicts if verdict.outcome != "holds")
    return {verdict.check: verdict.outcome for verdict in verdicts}


def broken(function, samples, scope="sample"):
    return {check for check, outcome in outcomes(function, samples, scope).items() if outcome == "broken"}


def words(completions):
    return [len(completion_text(completion).split()) for completion in completions]


def honest(completions, answer, **kwargs):
    return [len(gold) / count if count > 1 else None for gold, count in zip(answer, words(completions))]


def ranks(completions, **kwargs):
    counts = words(completions)
    return [sorted(counts).index(count) / len(counts) for count in counts]


def ranks_in_group(completions, prompts, **kwargs):
    counts = words(completions)
    return [sum(c < count for p, c in zip(prompts, counts) if p == prompt) for prompt, count in zip(prompts, counts)]


def test_an_honest_function_keeps_every_rule(samples):
    found = outcomes(honest, samples)
    assert set(found.values()) == {"holds"}
    assert list(found) == ["all in one call", "the same again", "another worker", "order", "by itself", "plain texts"]


def test_each_call_is_as_large_as_the_rule_needs(samples):
    here, elsewhere = Calls(honest), Calls(honest)
    compare(here, elsewhere, samples, "sample", KEY)
    assert here.sizes == [1] * len(here.sizes[:-4]) + [COUNT] * 4 and len(here.sizes) - 4 <= contract.ALONE
    assert elsewhere.sizes == [COUNT]


def test_what_is_kept_from_call_to_call_is_found(samples):
    calls = []
    counting = lambda completions, **kwargs: calls.append(1) or [float(len(calls))] * len(completions)
    assert broken(counting, samples) == {"the same again"}


def test_an_opinion_that_comes_or_goes_is_a_difference(samples):
    calls = []
    wavering = lambda completions, **kwargs: calls.append(1) or [1.0 if len(calls) % 2 else None] * len(completions)
    assert broken(wavering, samples) == {"the same again"}


def test_what_differs_between_workers_is_found(samples):
    of_worker = lambda completions, worker, **kwargs: [float(worker)] * len(completions)
    assert broken(of_worker, samples) == {"another worker"}


def test_rewards_that_do_not_follow_their_completions_are_found(samples):
    assert broken(lambda completions, **kwargs: sorted(words(completions)), samples) == {"order"}


def test_what_depends_on_its_neighbours_needs_a_wider_scope(samples):
    assert broken(ranks, samples) == broken(ranks, samples, "group") == {"by itself"}
    assert broken(ranks, samples, "batch") == set()
    assert broken(ranks_in_group, samples) == {"by itself"}
    assert broken(ranks_in_group, samples, "group") == set()
    for scope, wider in (("sample", "scope=group"), ("group", "scope=batch")):
        verdicts, _ = compare(Calls(ranks), Calls(ranks), samples, scope, KEY)
        assert any(f"{KEY}.{wider}" in verdict.remedy for verdict in verdicts)


def test_one_reward_for_all_is_found_though_single_calls_pass(samples):
    assert outcomes(lambda completions, **kwargs: [1.0], samples) == {"all in one call": "broken"}


def test_rounding_of_another_cut_is_no_difference(samples):
    def of_batch(completions, **kwargs):
        return [count / 3 + 1e-9 * len(completions) for count in words(completions)]

    assert broken(of_batch, samples) == set()


def test_a_function_for_messages_alone_is_noted_and_not_refused(samples):
    texts_differ = lambda completions, **kwargs: [float(len(completion)) for completion in completions]
    assert outcomes(texts_differ, samples)["plain texts"] == "note"
    failed = Scores([None] * COUNT, [RewardFailure(0, "exception", "TypeError: string indices", "mine.py:3")])
    (verdict,) = contract.check_forms(Scores([1.0] * COUNT), failed, samples, KEY)
    assert verdict.outcome == "note" and "completion_text" in verdict.remedy and "mine.py:3" in verdict.problem


def test_failures_are_told_by_kind_with_their_place_and_what_to_do(samples):
    failures = [RewardFailure(index, "exception", "ValueError: odd", "mine.py:7") for index in (2, 3, 5, 8)]
    failures.append(RewardFailure(9, "timeout", "took more than 1 s", ""))
    verdicts = contract.check_runs(Scores([1.0] * COUNT, failures), samples, KEY)
    assert [verdict.outcome for verdict in verdicts] == ["broken", "broken"]
    first, second = verdicts
    assert "mine.py:7: ValueError: odd" in first.problem and "sample 3, sample 4, sample 6 and 1 more" in first.problem
    assert f"{KEY}.timeout" in second.remedy
    assert contract.check_runs(Scores([1.0] * COUNT), samples, KEY)[0].outcome == "holds"
    odd = contract.check_odd(Scores([0.0], [RewardFailure(2, "nan", "NaN", "")]), list(ODD), samples, KEY)
    assert list(ODD)[2] in odd[0].problem


def test_a_missing_column_is_told_with_those_that_there_are(samples):
    error = "TypeError: mine() missing 1 required positional argument: 'solution'"
    (verdict,) = contract.check_runs(Scores([None], [RewardFailure(0, "exception", error, "")]), samples, KEY)
    assert "answer, exit, prompts" in verdict.remedy and "data.fields" in verdict.remedy


def test_every_kind_of_failure_has_a_remedy():
    assert set(REMEDIES) == set(KINDS)


@pytest.mark.parametrize(
    ("rewards", "alone", "outcome"),
    [
        ([1.0, 0.0], True, "holds"),
        ([1.0, None, 0.0], True, "note"),
        ([1.0, 1.0], True, "note"),
        ([None, None], True, "broken"),
        ([None, None], False, "note"),
    ],
)
def test_whether_rewards_tell_completions_apart(rewards, alone, outcome):
    assert contract.check_spread(rewards, alone)[0].outcome == outcome


def test_time_and_memory_near_their_limits_are_noted():
    assert contract.check_time([0.1, 4.9], 10, KEY)[0].outcome == "holds"
    assert contract.check_time([0.1, 5.1], 10, KEY)[0].outcome == "note"
    assert contract.check_memory(1.9, 4, KEY)[0].outcome == "holds"
    assert contract.check_memory(2.1, 4, KEY)[0].outcome == "note"


def test_a_shuffle_moves_something_and_is_the_same_each_time():
    for count in (2, 3, 50):
        order = contract.shuffled(count)
        assert sorted(order) == list(range(count)) != order and order == contract.shuffled(count)


def test_odd_completions_are_what_they_are_called():
    assert ODD["empty"] == "" and "\0" in ODD["NUL"] and len(ODD["100,000 words"].split()) == 100_000
    with pytest.raises(UnicodeEncodeError):
        ODD["half a surrogate pair"].encode()
    assert inspect.cleandoc(ODD["a program that does not end its block"]).count("```") == 1
