"""Gram matrices against inputs that are gathered row by row, without padding; what shares a sum; refusals."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ruyi_rl.family import Family
from ruyi_rl.family.calibration import collect_grams, compressed_modules, module_group

EXITS = {"small": 1, "large": 4}


@pytest.fixture
def stock(backbone):
    def make(kind: str = "qwen3", dtype: torch.dtype = torch.float64):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(backbone(kind), dtype=dtype)

    return make


def linears(model) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers.4" in n] + ["lm_head"]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Qwen's norms compute in float32 whatever the model's dtype, which leaves some noise."""
    assert torch.linalg.norm(found - expected) <= 1e-6 * torch.linalg.norm(expected)


def gathered(model, names, ids, mask) -> dict[str, torch.Tensor]:
    """Module name -> (tokens, n), each row of the batch run alone and without its padding."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: seen[name].append(x[0][0]))
        for name in names
    ]
    with torch.no_grad():
        for row, keep in zip(ids, mask.bool()):
            model(row[keep][None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_grams_are_those_of_the_unpadded_rows(stock, padded_batch, kind):
    model, (ids, mask) = stock(kind), padded_batch
    names = linears(model)
    expected = gathered(model, names, ids, mask)
    found = collect_grams(model, names, [{"input_ids": ids, "attention_mask": mask}])
    assert found.tokens == mask.sum() and list(found.grams) == names and len(names) == 8
    for name, inputs in expected.items():
        assert found.grams[name].dtype == torch.float64
        assert_near(found.grams[name], inputs.T @ inputs)


def test_split_order_and_padding_do_not_matter(stock, padded_batch):
    model, (ids, mask) = stock(), padded_batch
    names = linears(model)
    together = collect_grams(model, names, [{"input_ids": ids, "attention_mask": mask}])
    wider = torch.nn.functional.pad(ids, (3, 2), value=5), torch.nn.functional.pad(mask, (3, 2))
    nothing = {"input_ids": ids, "attention_mask": torch.zeros_like(mask)}
    apart = [{"input_ids": wider[0][i : i + 1], "attention_mask": wider[1][i : i + 1]} for i in (2, 0, 1)]
    for batches in (apart, [nothing, *apart]):
        other = collect_grams(model, names, iter(batches))
        assert other.tokens == together.tokens
        for name in names:
            assert_near(other.grams[name], together.grams[name])


def test_modules_with_one_input_hold_one_tensor_over_all_batches(stock, padded_batch):
    model, (ids, _) = stock(dtype=torch.float32), padded_batch
    grams = collect_grams(model, linears(model), [{"input_ids": ids}, {"input_ids": ids.flip(0)}]).grams
    of = {module_group(name): gram for name, gram in grams.items()}
    assert of["q_proj"] is of["k_proj"] is of["v_proj"] and of["gate_proj"] is of["up_proj"]
    assert len({id(gram) for gram in grams.values()}) == 5
    # Twice the same rows: twice the sum, in each that is shared as well.
    once = collect_grams(model, linears(model), [{"input_ids": ids}]).grams
    for name in grams:
        torch.testing.assert_close(grams[name], 2 * once[name], rtol=1e-4, atol=1e-4)


def test_low_precision_inputs_are_summed_in_float64(stock, padded_batch):
    model, (ids, _) = stock(dtype=torch.bfloat16), padded_batch
    hidden = model.model(ids).last_hidden_state.detach().flatten(0, 1).to(torch.float64)
    found = collect_grams(model, ["lm_head"], [{"input_ids": ids}] * 50).grams["lm_head"]
    torch.testing.assert_close(found, 50 * hidden.T @ hidden, rtol=1e-12, atol=0)


def test_no_logits_are_computed(stock, padded_batch):
    model, (ids, _) = stock(), padded_batch
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    grams = collect_grams(model, ["lm_head"], [{"input_ids": ids}]).grams
    assert not called
    hidden = model.model(ids).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(grams["lm_head"], hidden.T @ hidden)


@pytest.mark.parametrize("training", [True, False])
def test_mode_comes_back_and_hooks_go_even_after_an_error(stock, padded_batch, training):
    model, (ids, _) = stock().train(training), padded_batch
    modes = []
    model.model.norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    lines = []
    collect_grams(model, linears(model), [{"input_ids": ids}], lines.append)
    assert modes == [False] and model.training == model.model.norm.training == training and len(lines) == 1
    model.model.layers[4].input_layernorm.weight.data[3] = float("nan")
    for name in linears(model):
        with pytest.raises(ValueError, match="NaN or infinity") as error:
            collect_grams(model, [name], [{"input_ids": ids}])
        assert name in str(error.value) and "batch 0" in str(error.value)
    assert model.training == training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_nan_names_its_batch(stock):
    model = stock()
    model.model.embed_tokens.weight.data[7] = float("inf")
    batches = [{"input_ids": torch.full((1, 4), token)} for token in (5, 6, 7)]
    collect_grams(model, ["model.layers.0.self_attn.q_proj"], batches[:2])
    with pytest.raises(ValueError, match=r"batch 2.*model\.layers\.0\.self_attn\.q_proj"):
        collect_grams(model, ["model.layers.0.self_attn.q_proj"], batches)


def test_nan_in_padding_does_not_count(stock, padded_batch):
    model, (ids, mask) = stock(), padded_batch
    clean = collect_grams(model, ["lm_head"], [{"input_ids": ids, "attention_mask": mask}]).grams["lm_head"]
    model.model.norm.register_forward_hook(lambda _, x, y: y.masked_fill(~mask.bool()[..., None], float("nan")))
    found = collect_grams(model, ["lm_head"], [{"input_ids": ids, "attention_mask": mask}]).grams["lm_head"]
    assert torch.equal(found, clean)


def test_no_calibration_is_refused(stock, padded_batch):
    ids, mask = padded_batch
    for batches in ([], [{"input_ids": ids[:, :0]}], [{"input_ids": ids, "attention_mask": torch.zeros_like(mask)}]):
        with pytest.raises(ValueError, match="no calibration"):
            collect_grams(stock(), ["lm_head"], batches)


@pytest.mark.parametrize("exit, shared", [("small", False), ("large", False), ("small", True)])
def test_compressed_modules_are_the_exits_own(backbone, exit, shared):
    family = Family.from_scratch(backbone(), EXITS, shared_heads=shared).expand(exit, 2)
    modules = compressed_modules(family.config, exit)
    assert len(modules) == 14 + (not shared)
    branch = family.branch(exit, copy=False)
    for stock_name, own in modules.items():
        theirs, ours = branch.get_submodule(stock_name).weight, family.get_submodule(own).weight
        assert theirs.data_ptr() == ours.data_ptr()
    groups = {module_group(name) for name in modules} - {"lm_head"}
    assert groups == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
