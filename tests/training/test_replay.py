from collections import Counter

import pytest
from datasets import Dataset

from ruyi_rl.training.replay import mixed_rows, replay_indices


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.2, 25), (0.5, 100), (0.9, 900)])
def test_replayed_rows_are_the_asked_share_of_the_mix(share, replayed):
    mixed = replay_indices(1000, 100, share, seed=1)
    first = [index for index in mixed if index < 1000]
    assert len(first) == replayed and len(first) / len(mixed) == pytest.approx(share)
    assert sorted(index - 1000 for index in mixed if index >= 1000) == list(range(100))
    assert len(set(first)) == len(first)


def test_too_few_first_rows_are_replayed_evenly():
    counts = Counter(index for index in replay_indices(10, 75, 0.25, seed=1) if index < 10)
    assert sum(counts.values()) == 25 and set(counts.values()) == {2, 3}


def test_the_mix_is_shuffled_by_the_seed_alone():
    first, again, other = (replay_indices(50, 50, 0.5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert any(index < 50 for index in first[50:]) and any(index >= 50 for index in first[:50])


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_an_impossible_share_is_an_error(share):
    with pytest.raises(ValueError, match="share"):
        replay_indices(10, 10, share, seed=1)


def test_nothing_to_replay_is_an_error():
    with pytest.raises(ValueError, match="no first-stage rows"):
        replay_indices(0, 10, 0.5, seed=1)


def test_rows_keep_their_common_columns():
    first = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["A", "B"], "level": [1, 2]})
    second = Dataset.from_dict({"prompt": ["c", "d"], "completion": ["C", "D"]})
    mixed = mixed_rows(first, second, 0.5, seed=1)
    assert mixed.column_names == ["prompt", "completion"]
    assert {(row["prompt"], row["completion"]) for row in mixed} == {("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")}
