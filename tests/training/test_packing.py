"""Layouts of packs, by hand for small ones and by what they mean for random ones."""

import itertools
import random

import pytest
import torch

from ruyi_rl.family.pack import Pack
from ruyi_rl.training.packing import pack_rows, pack_sequences

EXITS = ["large", "medium", "small"]


def padded(parts, width, left):
    """Token lists of each row -> ids and mask, 0 as padding."""
    ids, mask = torch.zeros(len(parts), width, dtype=torch.int64), torch.zeros(len(parts), width, dtype=torch.int64)
    for row, tokens in enumerate(parts):
        start = width - len(tokens) if left else 0
        ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, start : start + len(tokens)] = 1
    return ids, mask


def packed_rows(rows, prompt_width, completion_width, exits=EXITS, left=True):
    """rows: (prompt number, exit, prompt tokens, completion tokens)."""
    prompts, prompt_mask = padded([row[2] for row in rows], prompt_width, left)
    completions, completion_mask = padded([row[3] for row in rows], completion_width, False)
    return pack_rows(
        torch.cat([prompts, completions], 1),
        torch.cat([prompt_mask, completion_mask], 1),
        completion_width,
        torch.tensor([row[0] for row in rows]),
        torch.tensor([row[1] for row in rows]),
        exits,
    )


def test_a_layout_by_hand():
    rows = [
        (7, 1, [10, 11], [50, 51]),
        (3, 0, [20, 21, 22], [60, 61, 62]),
        (3, 1, [20, 21, 22], []),
        (7, 0, [10, 11], [70]),
    ]
    found = packed_rows(rows, 4, 3, exits=["deep", "flat"])
    # Prompts in the order in which they come; of the completions all but the last token, which predicts nothing.
    assert found.input_ids.tolist() == [[10, 11, 20, 21, 22, 60, 61, 50]]
    assert found.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 2]]
    pack = found.pack
    assert (pack.lengths, pack.prompts, pack.shared, pack.owned) == (
        (2, 3, 2, 1),
        (-1, -1, 1, 0),
        2,
        {"deep": 1, "flat": 1},
    )
    assert (pack.tokens, pack.exits, pack.segments("deep"), pack.segments("flat")) == (
        8,
        ("deep", "flat"),
        (2, 3),
        (3, 4),
    )
    assert (pack.active(["flat"]), pack.active(["deep"])) == (4, 3)
    deep, flat = pack.scored["deep"], pack.scored["flat"]
    # Sources count among what the exit runs: the prompts and its own segments.
    assert deep.sources.tolist() == [4, 5, 6, 1] and deep.targets.tolist() == [60, 61, 62, 70]
    assert flat.sources.tolist() == [1, 5] and flat.targets.tolist() == [50, 51]
    assert found.places["deep"].tolist() == [3, 4, 5, 9] and found.places["flat"].tolist() == [0, 1]
    values = {"deep": torch.tensor([1.0, 2, 3, 4]), "flat": torch.tensor([5.0, 6])}
    assert found.unpack(values).tolist() == [[5, 6, 0], [1, 2, 3], [0, 0, 0], [4, 0, 0]]


def test_unpacked_values_keep_their_gradient():
    found = packed_rows([(0, 0, [1], [2, 3]), (0, 1, [1], [4])], 1, 2, exits=["deep", "flat"])
    values = {"deep": torch.ones(2, requires_grad=True), "flat": torch.ones(1, requires_grad=True)}
    (found.unpack(values) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert values["deep"].grad.tolist() == [1, 2] and values["flat"].grad.tolist() == [3]


def test_an_exit_without_any_token_is_still_in_the_pack():
    found = packed_rows([(0, 0, [1, 2], [3]), (0, 1, [1, 2], [])], 2, 2, exits=["deep", "flat"])
    assert found.input_ids.tolist() == [[1, 2]]
    assert found.pack.exits == ("deep", "flat") and dict(found.pack.owned) == {"deep": 0, "flat": 0}
    assert found.pack.scored["flat"].sources.dtype == found.pack.scored["flat"].targets.dtype == torch.int64
    assert len(found.pack.scored["flat"].sources) == len(found.places["flat"]) == 0
    assert found.unpack({"deep": torch.ones(1), "flat": torch.ones(0)}).tolist() == [[1, 0], [0, 0]]


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        packed_rows([(0, 0, [1], [3]), (1, 0, [], [3])], 2, 2, exits=["deep"])


def random_rows(generator, exits=3):
    """Rows of (prompt number, exit, prompt, completion), in any order; every token of the batch is another number."""
    tokens = iter(generator.sample(range(1, 4000), 3999))
    rows = []
    for number in generator.sample(range(20), generator.randint(1, 4)):
        prompt = [next(tokens) for _ in range(generator.randint(1, 6))]
        rows += [
            (number, exit, prompt, [next(tokens) for _ in range(generator.randint(0, 5))])
            for exit in range(exits)
            for _ in range(generator.randint(1, 3))
        ]
    generator.shuffle(rows)
    return rows


@pytest.mark.parametrize("left", [True, False])
def test_random_rows_are_predicted_from_what_stands_before_them(left):
    for seed in range(30):
        rows = random_rows(random.Random(seed))
        found = packed_rows(rows, 8, 5, left=left)
        pack, ids, positions = found.pack, found.input_ids[0].tolist(), found.position_ids[0].tolist()
        pack.check({"large": 5, "medium": 3, "small": 0})
        prompts = {row[0]: row[2] for row in rows}
        assert pack.shared == len(prompts) and pack.tokens == len(ids)
        # Every prompt once; of the completions all but their last tokens.
        assert pack.tokens == sum(map(len, prompts.values())) + sum(max(len(row[3]) - 1, 0) for row in rows)
        starts = [0, *itertools.accumulate(pack.lengths)][:-1]
        back = found.unpack({name: scored.targets for name, scored in pack.scored.items()})
        assert back.tolist() == [[*row[3], *[0] * (5 - len(row[3]))] for row in rows]
        for exit, name in enumerate(EXITS):
            first, last = pack.segments(name)
            run = [
                i
                for s in (*range(pack.shared), *range(first, last))
                for i in range(starts[s], starts[s] + pack.lengths[s])
            ]
            sources = [run[source] for source in pack.scored[name].sources.tolist()]
            source_of = dict(zip(pack.scored[name].targets.tolist(), sources))
            segment_of = {
                place: s for s in range(len(pack.lengths)) for place in range(starts[s], starts[s] + pack.lengths[s])
            }
            for _, owner, prompt, completion in rows:
                if owner != exit:
                    continue
                whole = prompt + completion
                for index, token in enumerate(completion, len(prompt)):
                    source = source_of[token]
                    assert ids[source] == whole[index - 1] and positions[source] == index - 1
                    segment = segment_of[source]
                    # What the source attends to: its prompt, and its own segment up to itself.
                    above = pack.prompts[segment]
                    before = ids[starts[above] : starts[above] + pack.lengths[above]] if above >= 0 else []
                    assert before + ids[starts[segment] : source + 1] == whole[:index]


def test_holes_in_the_mask_are_closed():
    """Positions count tokens, as a batch without the holes does."""
    ids = torch.tensor([[9, 1, 9, 2, 3, 9, 4, 9]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0, 1, 0]])
    found = pack_rows(ids, mask, 4, torch.tensor([0]), torch.tensor([0]), ["only"])
    assert found.input_ids.tolist() == [[1, 2, 3]] and found.position_ids.tolist() == [[0, 1, 2]]
    assert found.pack.lengths == (2, 1)
    assert found.unpack({"only": torch.tensor([3.0, 4.0])}).tolist() == [[3, 0, 4, 0]]


@pytest.mark.parametrize(
    "lengths, prompts, shared, owned, message",
    [
        ((2, 1, 1), (-1, 0, 0), 1, {"small": 1, "large": 1}, "deepest first"),
        ((2, 1, 1), (-1, 0, 0), 1, {"large": 1, "small": 2}, "do not make 3 segments"),
        ((2, 1), (-1,), 1, {"large": 1}, "do not make 2 segments"),
        ((2, 0), (-1, 0), 1, {"large": 1}, "empty"),
        ((), (), 0, {"large": 0}, "at least one segment"),
    ],
)
def test_packs_that_are_none_are_refused(lengths, prompts, shared, owned, message):
    with pytest.raises(ValueError, match=message):
        Pack(lengths, prompts, shared, owned).check({"small": 0, "large": 3})


def sequences(ids, mask, labels, positions=None):
    ids = torch.tensor(ids)
    if positions is None:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    return pack_sequences(ids, torch.tensor(mask), torch.tensor(labels), torch.as_tensor(positions), ["large", "small"])


def test_sequences_by_hand():
    found = sequences(
        [[0, 0, 5, 6, 7], [8, 9, 4, 0, 0]],
        [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]],
        [[-100, -100, 5, -100, 7], [8, 9, 4, -100, -100]],
    )
    assert found.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]] and found.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    pack = found.pack
    assert (pack.lengths, pack.prompts, pack.shared) == ((3, 3), (-1, -1), 2)
    assert pack.exits == ("large", "small") and dict(pack.owned) == {"large": 0, "small": 0}
    for name in pack.exits:
        # Nothing predicts a sequence's first token, whatever its label.
        assert pack.scored[name].sources.tolist() == [1, 3, 4] and pack.scored[name].targets.tolist() == [7, 9, 4]
    assert found.shape == (2, 4)
    back = found.unpack(dict.fromkeys(pack.exits, torch.tensor([1.0, 2.0, 3.0])))
    assert back.tolist() == [[0, 0, 0, 1], [2, 3, 0, 0]]


def test_positions_that_restart_separate_sequences_of_a_row():
    found = sequences(
        [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 0]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]],
        [[1, 2, 3, 4, 5, 6], [7, -100, 9, 1, 2, -100]],
        [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 0]],
    )
    assert found.pack.lengths == (3, 1, 2, 2, 3)
    assert found.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1, 0, 1, 2]]
    scored = found.pack.scored["small"]
    assert scored.targets.tolist() == [2, 3, 6, 1, 2] and scored.sources.tolist() == [0, 1, 4, 8, 9]
    assert found.places["small"].tolist() == [0, 1, 4, 7, 8]


def test_random_sequences_come_back_where_they_were():
    generator = torch.Generator().manual_seed(3)
    for left in (True, False):
        for _ in range(10):
            parts = [list(range(1, int(n) + 1)) for n in torch.randint(1, 9, (4,), generator=generator)]
            ids, mask = padded(parts, 9, left)
            labels = ids.masked_fill((mask == 0) | (torch.rand(ids.shape, generator=generator) < 0.3), -100)
            found = sequences(ids.tolist(), mask.tolist(), labels.tolist())
            first = mask.cumsum(1) == 1
            wanted = labels.masked_fill((labels == -100) | first, 0)[:, 1:]
            assert torch.equal(found.unpack({name: part.targets for name, part in found.pack.scored.items()}), wanted)
