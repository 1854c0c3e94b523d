"""Packs that are none, and calls that a pack does not go with."""

import pytest
import torch

from ruyi_rl.family import Family
from ruyi_rl.family.pack import Pack, Scored

NOTHING = Scored(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))
DEPTHS = {"small": 1, "large": 4}


def pack(**changes) -> Pack:
    """A prompt of two tokens, and a completion of one of each exit."""
    fields = {
        "lengths": (2, 1, 1),
        "prompts": (-1, 0, 0),
        "shared": 1,
        "owned": {"large": 1, "small": 1},
        "scored": {"large": NOTHING, "small": NOTHING},
    }
    return Pack(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"owned": {"small": 1, "large": 1}}, "deepest first"),
        ({"owned": {"large": 1}}, "do not make 3 segments"),
        ({"owned": {"large": 1, "gone": 1}}, "exits \\['gone'\\]"),
        ({"scored": {"gone": NOTHING}}, "exits \\['gone'\\]"),
        ({"lengths": (2, 0, 1)}, "no empty segments"),
        ({"prompts": (-1, 5, 0)}, "one of the 1 shared"),
        ({"prompts": (-1, 1, 0)}, "one of the 1 shared"),
        ({"prompts": (0, 0, 0)}, "which have none"),
    ],
)
def test_an_impossible_pack_is_refused(changes, message):
    pack().check(DEPTHS)
    with pytest.raises(ValueError, match=message):
        pack(**changes).check(DEPTHS)


@pytest.mark.parametrize("other", ["attention_mask", "labels", "inputs_embeds", "position_ids", "exits", "output"])
def test_what_a_pack_says_itself_is_refused_beside_it(backbone, other):
    family = Family.from_scratch(backbone(), DEPTHS)
    call = {
        "input_ids": torch.tensor([[3, 4, 5, 6]]),
        "position_ids": torch.tensor([[0, 1, 2, 2]]),
        "pack": pack(),
        "output": "log_probs",
    }
    assert set(family(**call).log_probs) == {"large", "small"}
    wrong = {"position_ids": None, "exits": "small", "output": "logits"}.get(other, torch.ones(1, 4))
    with pytest.raises(ValueError, match="a pack"):
        family(**call | {other: wrong})
