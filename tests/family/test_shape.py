"""A family's sizes from its config alone, against the family itself."""

import json
import re
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.shape import family_shape
from ruyi_rl.training.family_trainer import freeze_others
from ruyi_rl.validation.known_shape import BYTES, SHAPES, expanded

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXITS = {"small": 1, "medium": 2, "large": 4}


@pytest.fixture(params=["qwen3", "qwen3 tied", "qwen3 shared", "qwen2"])
def family(request):
    tied, shared = "tied" in request.param, " " in request.param
    own = {"head_dim": 10} if "qwen3" in request.param else {}
    kind = Qwen3Config if own else Qwen2Config
    return Family.from_scratch(kind(**SIZES, **own, tie_word_embeddings=tied), EXITS, shared)


def shape_of(family):
    return family_shape(family.config.to_dict(), family.config.exits, family.config.expansions)


def count(family):
    return sum(parameter.numel() for parameter in family.parameters())


def test_parameters(family):
    shape = shape_of(family)
    assert shape.parameters == count(family)
    for exit in EXITS:
        assert shape.branch(exit) == family.branch_parameters(exit)


@pytest.mark.parametrize("exits", [["small"], ["medium", "small"], ["large"], list(EXITS)])
def test_trained_parameters(family, exits):
    freeze_others(family, exits)
    trained = sum(parameter.numel() for parameter in family.parameters() if parameter.requires_grad)
    assert shape_of(family).trained(exits) == trained


def test_expansion():
    family = Family.from_scratch(Qwen3Config(**SIZES, head_dim=10), EXITS)
    grown = expanded(shape_of(family), None, 2)
    family.expand("small", blocks=2)
    assert grown == shape_of(family) and grown.parameters == count(family)
    freeze_others(family, ["small"], "expansion")
    trained = sum(parameter.numel() for parameter in family.parameters() if parameter.requires_grad)
    assert grown.trained(["small"], "expansion") == trained


def test_published_sizes():
    """Qwen3-14B with the exits of Ruyi2: a layer, a vocabulary matrix, and 17B in all."""
    stored = {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
    }
    shape = family_shape(stored, {"1.7B": 2, "8B": 21, "14B": 39})
    assert shape.layer == 330_311_936 and shape.matrix == 777_912_320
    assert round(shape.parameters / 1e9, 2) == 16.98


@pytest.mark.parametrize(
    ("base", "parameters"),
    # As the hub counts the tensors of each.
    [("Qwen/Qwen3-0.6B", 596_049_920), ("Qwen/Qwen3-14B-Base", 14_768_307_200), ("Qwen/Qwen2.5-7B", 7_615_616_512)],
)
def test_the_shapes_of_the_shipped_bases(base, parameters):
    stored = json.loads(SHAPES.read_text())[base]
    tied = stored["tie_word_embeddings"]
    shape = family_shape(stored, {"whole": stored["num_hidden_layers"] - 1}, shared_heads=tied)
    assert shape.parameters == parameters


def test_every_shipped_model_has_a_shape_without_the_hub():
    shipped = Path(__file__).parents[2] / "conf" / "model"
    named = {base for file in shipped.glob("*.yaml") for base in re.findall(r"base: (\S+/\S+)", file.read_text())}
    assert named == set(json.loads(SHAPES.read_text()))


def test_the_embedded_tokenizer_has_as_many_words():
    assert len(byte_tokenizer()) == BYTES
