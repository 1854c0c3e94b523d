import pytest
import torch

from ruyi_rl.family import Family

EXITS = {"small": 1, "large": 4}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_the_frequencies_as_they_are(backbone, kind, cast):
    family = Family.from_scratch(backbone(kind), EXITS)
    exact = family.model.rotary_emb.inv_freq.clone()
    family.to(cast)
    assert family.dtype == cast and family.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(family.model.rotary_emb.inv_freq, exact)
    assert family.bfloat16().model.rotary_emb.inv_freq.dtype == torch.float32  # DeepSpeed's engines cast so


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_far_into_a_text_a_cast_family_is_its_branch(backbone, kind):
    family = Family.from_scratch(backbone(kind), EXITS).bfloat16()
    ids = torch.randint(2, 97, (1, 16), generator=torch.Generator().manual_seed(0))
    places = torch.arange(3000, 3016)[None]
    with torch.no_grad():
        for exit in EXITS:
            found = family(ids, position_ids=places, exits=exit).logits[exit]
            assert torch.equal(found, family.branch(exit)(ids, position_ids=places).logits)
