"""The factored branch against the family, and its folder in a process that has never heard of the package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ruyi_rl.family import Family
from ruyi_rl.family import modeling_factored_qwen as factored_qwen
from tests.factored_family import with_factors

EXITS = {"small": 1, "medium": 2, "large": 4}
KINDS = [("qwen3", False, False), ("qwen2", False, False), ("qwen2", True, True), ("qwen3", True, False)]
"""Backbone, tied embeddings, one head for all exits."""

STRANGER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ruyi_rl":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import ruyi_rl
    raise SystemExit("not blocked")
except ModuleNotFoundError:
    pass

import torch
from transformers import AutoModelForCausalLM

folder, again, result = sys.argv[1:]
seen = {}
for name in ("first", "second"):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(ids).logits
    drawn = {cache: model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)}
    seen[name] = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "dtype": str(model.dtype),
        "logits": logits,
        "drawn": drawn,
        "names": sorted(model.state_dict()),
        "parameters": model.num_parameters(),
    }
    model.save_pretrained(again)
    folder = again
torch.save(seen, result)
"""


def family_of(backbone, kind, tied, shared, **changes):
    family = Family.from_scratch(backbone(kind, tie_word_embeddings=tied, **changes), EXITS, shared)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return with_factors(family, "small")


@pytest.mark.parametrize("kind, tied, shared", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factored_branch_computes_what_the_family_does(backbone, padded_batch, tmp_path, kind, tied, shared, dtype):
    family_of(backbone, kind, tied, shared).save_pretrained(tmp_path)
    family = Family.from_pretrained(tmp_path, dtype=dtype)
    ids, mask = padded_batch
    branch = family.factored_branch("small")
    assert type(branch).__name__ == f"Factored{kind.title()}ForCausalLM" and not branch.training
    expected = family(ids, mask, exits="small").logits["small"]
    assert branch.dtype == expected.dtype == dtype
    assert torch.equal(branch(ids, mask).logits, expected)
    kept = {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} | (set() if shared else {"lm_head"})
    assert {name.split(".")[-1] for name in branch.config.factor_ranks} == kept
    assert branch.num_parameters() == family.branch_parameters("small") < family.branch("small").num_parameters()


@pytest.mark.parametrize("copy", [True, False])
def test_the_tensors_are_copies_or_the_familys_own(backbone, copy):
    family = family_of(backbone, "qwen3", False, False)
    branch = family.factored_branch("small", copy=copy)
    theirs = {tensor.data_ptr() for tensor in family.state_dict().values()}
    for name, tensor in branch.state_dict().items():
        assert (tensor.data_ptr() in theirs) != copy, name


def test_a_factor_anywhere_in_the_branch_is_kept(backbone, padded_batch):
    family = Family.from_scratch(backbone("qwen2"), EXITS)
    ranks = {"model.layers.0.mlp.up_proj": 3, "model.layers.4.self_attn.q_proj": 4, "model.eelayers.1.mlp.up_proj": 5}
    factored_qwen.factor_modules(family, ranks)
    family.config.factor_ranks = ranks
    expected = {
        "small": {"model.layers.0.mlp.up_proj": 3},
        "medium": {"model.layers.0.mlp.up_proj": 3, "model.layers.2.mlp.up_proj": 5},
        "large": {"model.layers.0.mlp.up_proj": 3, "model.layers.4.self_attn.q_proj": 4},
    }
    for exit, kept in expected.items():
        branch = family.factored_branch(exit)
        assert branch.config.factor_ranks == kept
        assert torch.equal(branch(*padded_batch).logits, family(*padded_batch, exits=exit).logits[exit])


def test_a_branch_without_factors_is_refused(backbone):
    family = family_of(backbone, "qwen3", False, False)
    for exit, word in (("medium", r"branch\(\)"), ("smal", "no such exit")):
        with pytest.raises(ValueError, match=word):
            family.factored_branch(exit)


def test_gradients_are_those_of_the_dense_product():
    layer = factored_qwen.FactoredLinear(5, 4, 3, bias=True).double()
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    layer(x).pow(2).sum().backward()
    got, x.grad = x.grad, None
    weight = (layer.u.weight @ layer.v.weight).detach().requires_grad_()
    torch.nn.functional.linear(x, weight, layer.u.bias).pow(2).sum().backward()
    torch.testing.assert_close(got, x.grad)
    torch.testing.assert_close(layer.u.weight.grad, weight.grad @ layer.v.weight.T)
    torch.testing.assert_close(layer.v.weight.grad, layer.u.weight.T @ weight.grad)


def test_only_linear_layers_have_factors(backbone):
    config = backbone("qwen3")
    with pytest.raises(ValueError, match="Embedding"):
        factored_qwen.empty_model(config, {"model.embed_tokens": 3})
    model = factored_qwen.empty_model(config, {"lm_head": 3})
    assert model.lm_head.u.weight.shape == (97, 3) and model.lm_head.v.weight.shape == (3, 32)


@pytest.mark.parametrize("kind, tied, shared", KINDS[:3])
def test_a_folder_round_trips_in_this_process(backbone, padded_batch, tmp_path, kind, tied, shared):
    branch = family_of(backbone, kind, tied, shared).factored_branch("small")
    branch.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["factor_ranks"] == branch.config.factor_ranks
    name = f"modeling_factored_qwen.Factored{kind.title()}"
    assert stored["auto_map"] == {"AutoConfig": f"{name}Config", "AutoModelForCausalLM": f"{name}ForCausalLM"}
    loaded = type(branch).from_pretrained(tmp_path)
    assert loaded.config.factor_ranks == branch.config.factor_ranks
    assert torch.equal(loaded(*padded_batch).logits, branch(*padded_batch).logits)
    assert loaded.config.tie_word_embeddings == tied
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) if tied else True
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert config.factor_ranks == branch.config.factor_ranks
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == {
        name: tensor.shape for name, tensor in branch.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in empty.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind, tied, dtype", [("qwen3", False, "bfloat16"), ("qwen2", True, "float32")])
def test_a_folder_loads_where_the_package_is_not(backbone, tmp_path, kind, tied, dtype):
    family_of(backbone, kind, tied, shared=tied).save_pretrained(tmp_path / "family")
    branch = Family.from_pretrained(tmp_path / "family", dtype=getattr(torch, dtype)).factored_branch("small")
    branch.save_pretrained(tmp_path / "first")
    command = [sys.executable, "-c", STRANGER, *(str(tmp_path / name) for name in ("first", "second", "result.pt"))]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = branch(ids).logits
    drawn = branch.generate(ids, max_new_tokens=8, do_sample=False)
    for seen in torch.load(tmp_path / "result.pt").values():
        assert seen["class"] == type(branch).__name__ and seen["module"].startswith("transformers_modules.")
        assert seen["dtype"] == f"torch.{dtype}" and torch.equal(seen["logits"], expected)
        assert torch.equal(seen["drawn"][True], drawn)
        assert dtype == "bfloat16" or torch.equal(seen["drawn"][False], drawn)
        assert seen["parameters"] == branch.num_parameters() and seen["names"] == sorted(branch.state_dict())
