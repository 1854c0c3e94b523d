"""Expansion: at first the same function bit by bit, and always a stock Qwen of as many layers."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.config import RuyiQwen3Config
from ruyi_rl.family.pack import Pack, Scored
from ruyi_rl.family.weights import branch_sources

EXITS = {"small": 0, "medium": 2, "large": 4}
HEADS = {"separate": (False, False), "shared": (True, False), "tied": (True, True)}
KINDS = [(kind, heads) for kind in ("qwen2", "qwen3") for heads in HEADS]
DEEPER = {"small": 6, "large": 2}
"""Blocks with which the shallowest exit's branch is deeper than the trunk, and deeper than the last exit's was."""
SILENT = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
NOTHING = Scored(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))


def randomized(family: Family, seed: int = 7) -> Family:
    """Weights of its own for every exit and block, the silent matrices and Qwen2's biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return family


@pytest.fixture
def make_family(backbone):
    def make(kind="qwen3", heads="separate", blocks=None, **changes) -> Family:
        shared, tied = HEADS[heads]
        family = Family.from_scratch(backbone(kind, tie_word_embeddings=tied, **changes), EXITS, shared)
        for exit, number in (blocks or {}).items():
            family.expand(exit, number)
        return randomized(family)

    return make


@torch.no_grad()
def answers(family: Family, ids, mask) -> dict[str, torch.Tensor]:
    """Every exit's logits: of padded rows together and as rows of its own, of a pack, and while it generates."""
    found = {}
    pack = Pack((5, 4, 3, 3), (-1, 0, 0, 0), 1, dict.fromkeys(EXITS_DOWN, 1), dict.fromkeys(EXITS_DOWN, NOTHING))
    positions = torch.tensor([[*range(5), *range(5, 9), *range(5, 8), *range(5, 8)]])
    row = ids.flatten()[None, : pack.tokens]
    states = family(row, position_ids=positions, pack=pack, output="hidden_states").hidden_states
    together = family(ids, mask).logits
    rows = family(torch.cat([ids] * 3), torch.cat([mask] * 3), exits=dict.fromkeys(EXITS_DOWN, len(ids))).logits
    for exit in EXITS:
        with family.at_exit(exit):
            generated = family.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found |= {
            f"{exit}, together": together[exit],
            f"{exit}, rows": rows[exit],
            f"{exit}, pack": family.head(exit)(states[exit]),
            f"{exit}, generated": torch.stack(generated.logits),
        }
    return found


EXITS_DOWN = ("large", "medium", "small")


def assert_bit_by_bit(found, expected):
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        assert logits.isfinite().all() and logits.std() > 0.1, name  # else equal answers would say little
        assert (found[name].float() - logits.float()).abs().max() == 0, name


@pytest.mark.parametrize("init", ["gaussian", "clone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind, heads", KINDS)
def test_no_exits_logits_change_at_all(make_family, padded_batch, kind, heads, dtype, init):
    family = make_family(kind, heads).to(dtype)
    before = answers(family, *padded_batch)
    for exit in EXITS:
        assert family.expand(exit, 2, init) is family
    assert all(parameter.dtype == dtype for parameter in family.parameters())
    assert_bit_by_bit(answers(family, *padded_batch), before)
    randomized(family.get_submodule("model.expansions"))  # and from then on they count
    after = answers(family, *padded_batch)
    assert all((after[name] - before[name]).abs().max() > 0.1 for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_exits_logits_change_at_200_million_parameters(backbone, kind, dtype):
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    shape |= {"num_key_value_heads": 8, "vocab_size": 32_000, "initializer_range": 0.02}
    config = FamilyConfig.from_backbone(backbone(kind, **shape), {"small": 2, "large": 7})
    torch.set_default_dtype(dtype)
    try:
        family = Family(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    assert 1.8e8 < sum(parameter.numel() for parameter in family.parameters()) < 2.1e8
    ids = torch.randint(2, 32_000, (2, 24))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        before = family(ids, mask).logits
        family.expand("small", 3).expand("large", 1, init="clone")
        after = family(ids, mask).logits
    assert_bit_by_bit(after, before)


@pytest.mark.parametrize("kind, heads", KINDS)
def test_an_expanded_branch_is_a_stock_qwen(make_family, padded_batch, kind, heads):
    family = make_family(kind, heads, DEEPER)
    ids, mask = padded_batch
    labels = ids.masked_fill(mask == 0, -100)
    assert family.config.depths == {"small": 7, "medium": 3, "large": 7}
    outputs = family(ids, mask, labels=labels, output="log_probs", temperature=0.7)
    logits = family(ids, mask).logits
    wanted = {}
    for exit, depth in family.config.depths.items():
        stock = family.branch(exit)
        assert type(stock).__name__ == {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[kind]
        assert stock.config.num_hidden_layers == len(stock.model.layers) == depth
        assert family.branch_parameters(exit) == stock.num_parameters()
        expected = stock(ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[exit][mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-5)
        log_p = torch.log_softmax(expected[:, :-1] / 0.7, -1).gather(-1, ids[:, 1:, None])[..., 0]
        log_p = log_p.masked_fill(labels[:, 1:] == -100, 0)
        torch.testing.assert_close(outputs.log_probs[exit], log_p, atol=1e-4, rtol=1e-5)
        log_p.sum().backward()
        gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
        for name, source in branch_sources(family.config, exit, gradients).items():
            wanted[source] = wanted.get(source, 0) + gradients[name]
    sum(values.sum() for values in outputs.log_probs.values()).backward()
    found = {name: parameter.grad for name, parameter in family.named_parameters()}
    assert found.keys() == wanted.keys()
    scale = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp(min=1e-3 * scale), name


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_an_expanded_branch_generates_as_a_stock_qwen(make_family, padded_batch, kind):
    """A cache has a slot a layer of the trunk, and these branches have more layers."""
    family = make_family(kind, blocks=DEEPER)
    ids, mask = padded_batch
    mask[1] = 1
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "output_logits": True}
    for exit in EXITS:
        expected = family.branch(exit).generate(ids, return_dict_in_generate=True, **how)
        with family.at_exit(exit):
            actual = family.generate(ids, return_dict_in_generate=True, **how)
            uncached = family.generate(ids, use_cache=False, **how)
        assert torch.equal(actual.sequences, expected.sequences) and torch.equal(uncached, expected.sequences)
        torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-5)
    family.config.default_early_exit_point = 0
    expected = family.branch("small").generate(ids, **how)
    assert torch.equal(family.generate(ids, **how), expected)


@pytest.mark.parametrize("cache", ["none", "lazy", "of the config"])
def test_a_callers_cache_holds_a_branch_deeper_than_the_trunk(make_family, cache):
    family = make_family(blocks=DEEPER)
    ids = torch.arange(2, 14)[None]
    whole = family(ids, exits="small").logits["small"]
    past = {"none": lambda: None, "lazy": DynamicCache, "of the config": lambda: DynamicCache(config=family.config)}
    past, parts = past[cache](), []
    for part in ids.split([5, 1, 6], dim=1):
        output = family(part, exits="small", past_key_values=past, use_cache=True)
        past = output.past_key_values
        parts.append(output.logits["small"])
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-5)
    assert past.get_seq_length() == 12 and len(past.layers) == family.config.depths["small"]


@pytest.mark.parametrize("training", [True, False])
def test_new_blocks_are_in_the_familys_mode(make_family, training):
    family = make_family().train(training)
    family.expand("small", blocks=1, again=True)
    assert {module.training for module in family.modules()} == {training}


def test_a_cache_of_a_fixed_depth_that_is_too_shallow_is_refused(make_family):
    family = make_family(blocks=DEEPER)
    ids, room = torch.arange(2, 14)[None], {"max_cache_len": 16}
    with pytest.raises(ValueError, match=r"cache of 5 layers for a branch of .*branch_config"):
        family(ids, exits="small", past_key_values=StaticCache(config=family.config, **room), use_cache=True)
    deep = StaticCache(config=family.config.branch_config("small"), **room)
    output = family(ids, exits="small", past_key_values=deep, use_cache=True)
    torch.testing.assert_close(output.logits["small"], family(ids, exits="small").logits["small"])


def test_the_first_steps_gradients_go_to_the_silent_matrices_alone(make_family, padded_batch):
    """Of a new block; from the second step on the rest has gradients too."""
    ids, mask = padded_batch
    labels = ids.masked_fill(mask == 0, -100)
    for kind in ("qwen2", "qwen3"):
        family, plain = make_family(kind), make_family(kind)
        for exit, blocks in DEEPER.items():
            family.expand(exit, blocks)
        for model in (family, plain):
            model(ids, mask, labels=labels).loss.backward()
        new = family.model.expansions
        for name, parameter in new.named_parameters():
            assert bool(parameter.grad.any()) == name.endswith(SILENT), name
        kinds = {name.split(".", 2)[2] for name, _ in new.named_parameters()}
        assert {f"{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")} < kinds
        assert {"mlp.gate_proj.weight", "mlp.up_proj.weight", *SILENT} < kinds
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(family.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)
        torch.optim.SGD(family.parameters(), 0.1).step()
        family.zero_grad()
        family(ids, mask, labels=labels).loss.backward()
        assert all(parameter.grad.any() for parameter in new.parameters())


def test_the_seed_decides_and_nothing_else(make_family):
    def new(seed, kind="qwen2", dtype=torch.float32, disturbed=0):
        family = make_family(kind).to(dtype)
        torch.manual_seed(disturbed)
        state = torch.get_rng_state()
        tensors = family.expand("small", 2, seed=seed).model.expansions[0].state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        return tensors

    first, again, other = new(3), new(3, disturbed=5), new(4)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    drawn = [name for name, tensor in first.items() if tensor.dim() == 2 and not name.endswith(SILENT)]
    assert len(drawn) == 2 * 5
    assert not any(torch.equal(other[name], first[name]) for name in drawn)
    assert not any(torch.equal(first[f"0.{name[2:]}"], first[f"1.{name[2:]}"]) for name in drawn)
    narrow = new(3, dtype=torch.bfloat16)
    assert all(torch.equal(narrow[name], tensor.bfloat16()) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_gaussian_blocks_have_the_backbones_spread(make_family, kind):
    family = make_family(kind, hidden_size=128, intermediate_size=256, initializer_range=0.05).expand("medium")
    (block, *others) = family.model.expansions[1]
    assert len(others) == 2 and not len(family.model.expansions[0]) and not len(family.model.expansions[2])
    for name, parameter in block.named_parameters():
        if name.endswith(SILENT) or name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.05) and abs(parameter.mean()) < 0.003, name
        else:
            assert (parameter == 1).all(), name
        assert parameter.requires_grad


@pytest.mark.parametrize("exit", EXITS)
def test_cloned_blocks_are_the_branchs_last_layer(make_family, exit):
    family = make_family("qwen2")
    last = copy.deepcopy(family.model.own_layers(exit)[-1]).state_dict()
    family.expand(exit, 2, init="clone", seed=1)
    for block in family.model.own_layers(exit)[1:]:
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, torch.zeros_like(tensor) if name.endswith(SILENT) else last[name]), name
    addresses = [parameter.data_ptr() for parameter in family.model.parameters()]
    assert len(set(addresses)) == len(addresses)  # copies, not the layer itself


@pytest.mark.parametrize("init", ["gaussian", "clone"])
def test_an_exit_is_expanded_again_when_that_is_said(make_family, padded_batch, init):
    family = make_family(blocks={"small": 2})
    with pytest.raises(ValueError, match="small has 2 expansion blocks already; again=True appends 4 more"):
        family.expand("small", 4, init)
    before, first = answers(family, *padded_batch), list(family.model.expansions[0])
    last = copy.deepcopy(first[-1])
    family.expand("small", 4, init, again=True)
    assert list(family.model.expansions[0])[:2] == first
    assert family.config.expansion_blocks == [6, 0, 0] and family.config.expansions["small"] == 6
    assert [layer.self_attn.layer_idx for layer in family.model.own_layers("small")] == list(range(7))
    if init == "clone":
        assert torch.equal(family.model.expansions[0][5].mlp.up_proj.weight, last.mlp.up_proj.weight)
    assert_bit_by_bit(answers(family, *padded_batch), before)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"exit": "tiny"}, r"no such exit: 'tiny'; this family has \['small', 'medium', 'large'\]"),
        ({"exit": "small", "blocks": 0}, "blocks must be 1 or more, not 0"),
        ({"exit": "small", "blocks": -2}, "blocks must be 1 or more, not -2"),
        ({"exit": "small", "init": "zeros"}, r"init must be one of \('gaussian', 'clone'\), not 'zeros'"),
        ({"exit": "large"}, "large has 1 expansion blocks already"),
    ],
)
def test_a_wrong_expansion_is_refused_and_changes_nothing(make_family, call, message):
    family = make_family(blocks={"large": 1})
    before = {name: id(parameter) for name, parameter in family.named_parameters()}
    with pytest.raises(ValueError, match=message):
        family.expand(**call)
    assert {name: id(parameter) for name, parameter in family.named_parameters()} == before
    assert family.config.expansion_blocks == [0, 0, 1]


@pytest.mark.parametrize("factored", ["model.expansions.0.1.mlp.gate_proj", "lm_head.0"])
def test_a_compressed_exit_is_not_expanded_and_another_is(make_family, factored):
    config = make_family(blocks={"small": 2}).config
    config.factor_ranks = {factored: 3}
    family = Family(config)
    with pytest.raises(ValueError, match="small is compressed; expand the family that it was compressed from"):
        family.expand("small", again=True)
    assert family.expand("medium", 1).config.expansion_blocks == [2, 1, 0]


@pytest.mark.parametrize("kind, heads", KINDS)
@pytest.mark.parametrize("automatic", [False, True])
def test_saved_and_loaded_it_is_the_same(make_family, padded_batch, tmp_path, kind, heads, automatic):
    family = make_family(kind, heads, DEEPER)
    before = answers(family, *padded_batch)
    family.save_pretrained(tmp_path, max_shard_size="50KB")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["expansion_blocks"] == [6, 0, 2] and "factor_ranks" not in stored
    loader = AutoModelForCausalLM if automatic else Family
    loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(family)
    assert_bit_by_bit(answers(loaded, *padded_batch), before)
    loaded.expand("medium", 1).expand("small", 1, again=True)
    assert_bit_by_bit(answers(loaded, *padded_batch), before)
    names = {name for name in family.state_dict() if name.startswith("model.expansions.")}
    assert {"model.expansions.0.5.mlp.up_proj.weight", "model.expansions.2.1.input_layernorm.weight"} < names


def test_a_family_without_new_blocks_is_stored_as_before(make_family, tmp_path):
    """The published checkpoints' keys and names, and no others."""
    family = make_family()
    family.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert not {"expansion_blocks", "factor_ranks"} & stored.keys()
    assert not any("expansions" in name for name in family.state_dict())
    stored |= {"expansion_blocks": [], "factor_ranks": {}}  # told to be empty it is the same family
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert Family.from_pretrained(tmp_path).config.expansions == dict.fromkeys(EXITS, 0)


def test_impossible_numbers_of_blocks_are_refused(backbone):
    stored = FamilyConfig.from_backbone(backbone(), EXITS).to_dict()
    assert RuyiQwen3Config(**{**stored, "expansion_blocks": [0, 2, 0]}).depths == {"small": 1, "medium": 5, "large": 5}
    for blocks in ([1], [1, 0, -1], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="are not one number, 0 or more, for each of"):
            RuyiQwen3Config(**{**stored, "expansion_blocks": blocks})
