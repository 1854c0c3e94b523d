import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout.weights import branch_layout, branch_tensors, write_branch_config, write_branch_weights

EXITS = {"small": 0, "medium": 1, "large": 2}


def family_of(kind, shared_heads, tied=False):
    backbone = kind(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    family = Family.from_scratch(backbone, EXITS, shared_heads)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return family


FAMILIES = [(Qwen3Config, False, False), (Qwen3Config, True, True), (Qwen2Config, True, False)]


@pytest.mark.parametrize("kind, shared_heads, tied", FAMILIES)
@pytest.mark.parametrize("exit", EXITS)
def test_a_branch_is_the_stock_models_parameters(kind, shared_heads, tied, exit):
    family = family_of(kind, shared_heads, tied)
    layout = branch_layout(family.config, exit)
    sent = dict(branch_tensors(family, layout))
    expected = dict(family.branch(exit).named_parameters())
    assert sent.keys() == expected.keys()
    for tensor in layout:
        assert tensor.shape == tuple(sent[tensor.name].shape)
        assert torch.equal(sent[tensor.name], expected[tensor.name])
        assert not sent[tensor.name].requires_grad


@pytest.mark.parametrize("kind, shared_heads, tied", FAMILIES)
def test_private_parts_and_the_deepest_branch_are_all_that_a_branch_needs(kind, shared_heads, tied):
    family = family_of(kind, shared_heads, tied)
    deepest = {tensor.source for tensor in branch_layout(family.config, "large")}
    for exit in EXITS:
        whole = {tensor.source for tensor in branch_layout(family.config, exit)}
        private = {tensor.source for tensor in branch_layout(family.config, exit, private=True)}
        assert whole - deepest <= private <= whole


@pytest.mark.parametrize("shard_bytes", [2**30, 20_000])
def test_a_written_branch_loads_as_a_stock_model(tmp_path, shard_bytes):
    family = family_of(Qwen3Config, False)
    for exit in ("small", "large"):
        folder = tmp_path / exit
        write_branch_config(family.config, exit, folder, torch.float32, (3, 5))
        layout = branch_layout(family.config, exit)
        write_branch_weights(family, layout, folder, torch.float32, shard_bytes=2**30)
        write_branch_weights(family, layout, folder, torch.float32, shard_bytes=shard_bytes)
        files = list(folder.glob("*.safetensors"))
        assert (len(files) == 1) == (shard_bytes == 2**30)
        stock = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(stock(ids).logits, family.branch(exit)(ids).logits)
        assert stock.generation_config.eos_token_id == [3, 5]


def test_dtype_and_silence_of_the_other_ranks(tmp_path):
    family = family_of(Qwen3Config, False)
    layout = branch_layout(family.config, "small")
    write_branch_weights(family, layout, tmp_path / "none", torch.bfloat16, write=False)
    assert not (tmp_path / "none").exists()
    write_branch_config(family.config, "small", tmp_path / "half", torch.bfloat16)
    write_branch_weights(family, layout, tmp_path / "half", torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
