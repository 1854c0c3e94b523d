import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.rollout.weights import branch_layout, branch_tensors, write_branch_config, write_branch_weights
from tests.factored_family import with_factors

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


def expanded(family):
    """Two exits with new blocks that are no longer silent, the last one among them."""
    for exit, blocks in (("small", 2), ("large", 1)):
        family.expand(exit, blocks)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return family


def compressed(family):
    return with_factors(expanded(family), "medium")


GROWN = [lambda family: family, expanded, compressed]
"""What DaE makes of a family, step by step."""
FAMILIES = [(Qwen3Config, False, False), (Qwen3Config, True, True), (Qwen2Config, True, False)]


@pytest.mark.parametrize("kind, shared_heads, tied", FAMILIES)
@pytest.mark.parametrize("grown", GROWN)
@pytest.mark.parametrize("exit", EXITS)
def test_a_branch_is_the_stock_models_parameters(kind, shared_heads, tied, grown, exit):
    family = grown(family_of(kind, shared_heads, tied))
    layout = branch_layout(family.config, exit)
    sent = dict(branch_tensors(family, layout))
    expected = dict(family.branch(exit).named_parameters())
    assert sent.keys() == expected.keys()
    for tensor in layout:
        assert tensor.shape == tuple(sent[tensor.name].shape)
        assert torch.equal(sent[tensor.name], expected[tensor.name])
        assert not sent[tensor.name].requires_grad


@pytest.mark.parametrize("kind, shared_heads, tied", FAMILIES)
@pytest.mark.parametrize("grown", GROWN)
def test_private_parts_and_the_deepest_branch_are_all_that_a_branch_needs(kind, shared_heads, tied, grown):
    family = grown(family_of(kind, shared_heads, tied))
    deepest = {tensor.sources for tensor in branch_layout(family.config, "large")}
    names = set(family.state_dict())
    for exit in EXITS:
        whole = {tensor.sources for tensor in branch_layout(family.config, exit)}
        private = {tensor.sources for tensor in branch_layout(family.config, exit, private=True)}
        assert whole - deepest <= private <= whole
        assert {name for sources in whole for name in sources} <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_sent_as_their_product(dtype):
    family = compressed(family_of(Qwen2Config, False)).to(dtype)
    layout = branch_layout(family.config, "medium")
    sent, own = dict(branch_tensors(family, layout)), family.state_dict()
    factored = {tensor.name: tensor.sources for tensor in layout if len(tensor.sources) == 2}
    assert len(factored) == 1 + 2 * 6
    for name, (u, v) in factored.items():
        expected = own[u].double() @ own[v].double()
        assert sent[name].dtype == dtype and not sent[name].requires_grad
        torch.testing.assert_close(sent[name].double(), expected, atol=1e-7, rtol=torch.finfo(dtype).eps)
    name = "model.layers.2.self_attn.q_proj"
    assert torch.equal(sent[f"{name}.bias"], own["model.expansions.1.0.self_attn.q_proj.u.bias"])


@pytest.mark.parametrize("shard_bytes", [2**30, 20_000])
def test_a_written_branch_loads_as_a_stock_model(tmp_path, shard_bytes):
    family = compressed(family_of(Qwen3Config, False))
    for exit in EXITS:
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
