import pytest
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.benchmarks.cost import passed_parameters, teraflops
from ruyi_rl.family import Family
from ruyi_rl.family.stored import stored_family

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize(("kind", "tied"), [(Qwen3Config, False), (Qwen2Config, True)])
def test_a_token_passes_through_the_stock_branch_but_for_what_is_looked_up(kind, tied, tmp_path):
    family = Family.from_scratch(kind(**SHAPE, tie_word_embeddings=tied), {"small": 0, "large": 2}, shared_heads=tied)
    family.save_pretrained(tmp_path)
    stored = stored_family(tmp_path)
    for exit in family.exits:
        # A tied head is one of the parameters, and counted once.
        whole = sum(parameter.numel() for parameter in family.branch(exit).parameters())
        assert passed_parameters(stored, exit) == whole - (0 if tied else 60 * 16)
    assert passed_parameters(stored, "small") < passed_parameters(stored, "large")


def test_two_operations_a_parameter_and_token():
    assert teraflops(1_700_000_000, 1000) == pytest.approx(3.4)
