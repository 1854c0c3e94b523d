"""Folders: the published names, round trips, sharding, Auto classes, and the configuration's refusals."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ruyi_rl.family import Family, FamilyConfig
from tests.published_checkpoint import written_by_hand

EXITS = {"small": 1, "medium": 2, "large": 4}


@pytest.mark.parametrize("kind, tied, shared", [("qwen3", False, False), ("qwen3", True, True), ("qwen2", False, True)])
def test_sharded_round_trip(backbone, padded_batch, tmp_path, kind, tied, shared):
    family = Family.from_scratch(backbone(kind, tie_word_embeddings=tied), EXITS, shared)
    family.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and not list(tmp_path.glob("*.bin"))
    for loaded in (Family.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(family) and loaded.exits == EXITS
        assert loaded.config.tie_word_embeddings == (tied and shared)
        state = loaded.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in family.state_dict().items())
        torch.testing.assert_close(loaded(*padded_batch).logits["medium"], family(*padded_batch).logits["medium"])
    assert FamilyConfig.from_pretrained(tmp_path).exits == EXITS


def independent_logits(tensors, ids: torch.Tensor, exit_index: int, shared: bool) -> torch.Tensor:
    """The exit's forward in a few lines of float64, from the report's description alone."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    points, heads, head_dim = [0, 1, 3], 3, 8

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[name]

    def rotate(x):
        angle = torch.arange(x.shape[0]).double()[:, None] / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., : head_dim // 2], x[..., head_dim // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def project(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def layer(x, place):
        y = norm(x, f"{place}.input_layernorm.weight")
        q, k, v = (project(y, f"{place}.self_attn.{p}_proj").view(len(y), -1, head_dim) for p in "qkv")
        if f"{place}.self_attn.q_norm.weight" in weights:
            q, k = norm(q, f"{place}.self_attn.q_norm.weight"), norm(k, f"{place}.self_attn.k_norm.weight")
        q, k = rotate(q), rotate(k)
        score = torch.einsum("qhd,kd->hqk", q, k[:, 0]) / head_dim**0.5
        score = score.masked_fill(torch.ones(len(y), len(y)).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hqk,kd->qhd", score.softmax(-1), v[:, 0]).reshape(len(y), heads * head_dim)
        x = x + project(mixed, f"{place}.self_attn.o_proj")
        y = norm(x, f"{place}.post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(project(y, f"{place}.mlp.gate_proj"))
        return x + project(gate * project(y, f"{place}.mlp.up_proj"), f"{place}.mlp.down_proj")

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(points[exit_index]):
        x = layer(x, f"model.layers.{index}")
    x = layer(x, f"model.eelayers.{exit_index}" if exit_index < 2 else "model.layers.3")
    x = norm(x, f"model.norms.{exit_index}.weight")
    return x @ weights["lm_head.weight" if shared else f"lm_head.{exit_index}.weight"].T


@pytest.mark.parametrize("model_type", ["ruyi_qwen3", "ee_qwen3", "ruyi_qwen2"])
@pytest.mark.parametrize("shared", [False, True])
def test_published_checkpoint_loads_as_it_is(tmp_path, model_type, shared):
    tensors = written_by_hand(tmp_path, model_type, shared)
    ids = torch.randint(0, 61, (11,), generator=torch.Generator().manual_seed(2))
    for family in (Family.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert family.exits == {"exit0": 0, "exit1": 1, "exit3": 3}
        with torch.no_grad():
            logits = family.double()(ids[None]).logits
        for index, name in enumerate(family.exits):
            # 11 tokens under a sliding window of 4: the published config's window must not mask anything.
            # transformers computes the rotary angles in float32 whatever the dtype.
            expected = independent_logits(tensors, ids, index, shared)
            torch.testing.assert_close(logits[name][0], expected, atol=2e-5, rtol=1e-5)
            stock = family.branch(name)(ids[None]).logits[0]
            torch.testing.assert_close(stock, expected, atol=2e-5, rtol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path).model_type == model_type


def test_saved_family_keeps_the_published_names(tmp_path, backbone):
    Family.from_scratch(backbone(), EXITS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "ruyi_qwen3" and config["early_exit_points"] == [1, 2, 4]
    assert config["shared_heads"] is False and config["default_early_exit_point"] == -1
    names = set(Family.from_pretrained(tmp_path).state_dict())
    assert {"model.norms.2.weight", "lm_head.0.weight", "model.eelayers.1.mlp.up_proj.weight"} <= names
    assert "model.norm.weight" not in names


def test_default_exit_is_the_published_key(tmp_path, backbone, padded_batch):
    family = Family.from_scratch(backbone(), EXITS)
    family.config.default_early_exit_point = 2
    ids, mask = padded_batch
    mask[1] = 1
    expected = family.branch("medium").generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(family.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize(
    "exits, message",
    [
        ({"a": 1, "b": 5}, "between 0 and 4"),
        ({"a": -1, "b": 4}, "between 0 and 4"),
        ({"a": 1, "b": 1, "c": 4}, "must increase"),
        ({"a": 1, "b": 3}, "end at 4"),
        ({}, None),
    ],
)
def test_impossible_exits_are_refused(backbone, exits, message):
    if message is None:
        assert Family.from_scratch(backbone(), exits).exits == {"exit4": 4}
        return
    with pytest.raises(ValueError, match=message):
        Family.from_scratch(backbone(), exits)


def test_base_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
    with pytest.raises(ValueError, match="gpt2"):
        Family.from_base(str(tmp_path), {"a": 0, "b": 1})
    with pytest.raises(ValueError, match="from_base"):
        Family.from_pretrained(tmp_path)


def test_published_sizes():
    """1.769 / 8.045 / 13.990 B: what gives Ruyi2's exits their names. Shapes only, on the meta device."""
    from transformers import Qwen3Config

    shape = Qwen3Config(
        hidden_size=5120,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=17408,
        vocab_size=151936,
    )
    with torch.device("meta"):
        family = Family(FamilyConfig.from_backbone(shape, {"1.7B": 2, "8B": 21, "14B": 39}))
    # The names count one vocabulary matrix; a branch has two, the embedding and its head.
    sizes = [family.branch_parameters(name) - 151936 * 5120 for name in family.exits]
    assert [round(size / 1e9, 3) for size in sizes] == [1.769, 8.045, 13.990]


@pytest.mark.slow
def test_a_configuration_loads_before_any_family_was_imported(tmp_path, backbone):
    FamilyConfig.from_backbone(backbone(), EXITS).save_pretrained(tmp_path)
    code = "import sys; from ruyi_rl.family import FamilyConfig; print(FamilyConfig.from_pretrained(sys.argv[1]).exits)"
    shown = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(EXITS)
