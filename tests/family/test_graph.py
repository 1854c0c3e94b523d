"""What stands below the first trained parameter runs without a graph, and what is trained is trained as ever."""

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from ruyi_rl.family import Family
from ruyi_rl.training.packing import pack_sequences

EXITS = {"small": 0, "medium": 1, "large": 3}
BLOCKS = {"small": 3, "large": 2}
CHECKPOINTING = [None, {"use_reentrant": False}, {"use_reentrant": True}]


def make_family(kind="qwen3", dtype=torch.float32, blocks=BLOCKS, shared_heads=False) -> Family:
    """Expanded, and every weight moved away from its start; in training mode."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    backbone = Qwen2Config(**shape) if kind == "qwen2" else Qwen3Config(**shape, head_dim=8)
    family = Family.from_scratch(backbone, EXITS, shared_heads)
    for exit, number in blocks.items():
        family.expand(exit, number)
    torch.manual_seed(0)
    for parameter in family.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return family.to(dtype).train()


IDS = torch.randint(0, 61, (3, 11), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0
MASK[2, 7:] = 0
LABELS = IDS.masked_fill(MASK == 0, -100)


def loss_of(family: Family, exits, packed: bool) -> torch.Tensor:
    """Sum of all labels' log-probs over the exits, of padded rows or of a pack."""
    if not packed:
        outputs = family(IDS, MASK, labels=LABELS, exits=list(exits), output="log_probs", use_cache=False)
    else:
        positions = (MASK.cumsum(1) - 1).clamp(min=0)
        deepest = sorted(exits, key=EXITS.get, reverse=True)
        pack = pack_sequences(IDS, MASK, LABELS, positions, deepest)
        outputs = family(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            pack=pack.pack,
            use_cache=False,
            output="log_probs",
        )
    return sum(outputs.log_probs[exit].sum() for exit in exits)


def gradients(family: Family) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None}
    family.zero_grad()
    return found


def named_as_trained(family: Family, exits) -> set[str]:
    """Names of the exits' blocks, norms and heads, written out here once more."""
    indices = [list(EXITS).index(exit) for exit in exits]
    kept = [f"model.{kind}.{index}." for index in indices for kind in ("expansions", "norms")]
    kept += [] if family.config.shared_heads else [f"lm_head.{index}." for index in indices]
    return {name for name, _ in family.named_parameters() if name.startswith(tuple(kept))}


@pytest.fixture
def exact(monkeypatch):
    """The stock norms round to float32 inside."""

    def norm(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_qwen2.Qwen2RMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", norm)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_trained_parameters_get_the_gradients_of_a_whole_graph(exact, kind, packed, checkpointing):
    """In float64, and no other parameter gets any; the whole graph is a stock branch's (tests of the expansion)."""
    whole = make_family(kind, torch.float64)
    for exits in (["small"], ["large"], ["small", "large"]):
        loss_of(whole, exits, packed).backward()
        wanted = gradients(whole)
        family = make_family(kind, torch.float64)
        frozen = family.freeze_except(exits, only_expansion=True)
        if checkpointing is not None:
            family.gradient_checkpointing_enable(checkpointing)
        loss_of(family, exits, packed).backward()
        found = gradients(family)
        assert found.keys() == named_as_trained(family, exits)
        assert found.keys() | set(frozen) == {name for name, _ in family.named_parameters()}
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-10, rtol=1e-10)


def watch(family: Family) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Of the next forward: each layer's output, and the number of tensors saved below the new blocks and above."""
    trunk, new = family.model, {}
    below = {"embed_tokens": trunk.embed_tokens}
    below |= {f"layers.{index}": layer for index, layer in enumerate(trunk.layers)}
    below |= {f"eelayers.{index}": layer for index, layer in enumerate(trunk.eelayers)}
    for index, blocks in enumerate(trunk.expansions):
        new |= {f"expansions.{index}.{number}": block for number, block in enumerate(blocks)}
    outputs, saved = {}, {"below": 0, "above": 0, "now": "below"}
    for region, modules in (("below", below), ("above", new), ("above", dict(trunk.norms.named_children()))):
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, region=region: saved.update(now=region))
            if region == "below" or module in new.values():
                module.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
    return outputs, saved


def counted(saved) -> torch.autograd.graph.saved_tensors_hooks:
    def keep(tensor):
        saved[saved["now"]] += 1
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("packed", [False, True])
def test_the_layers_below_have_no_graph_and_save_nothing(packed, checkpointing):
    exits = ["medium", "small"]
    for only_expansion in (True, False):
        family = make_family(blocks={"small": 2, "medium": 1})
        family.freeze_except(exits, only_expansion)
        if checkpointing is not None:
            family.gradient_checkpointing_enable(checkpointing)
        outputs, saved = watch(family)
        with counted(saved):
            loss_of(family, exits, packed)
        below = {"embed_tokens", "layers.0", "eelayers.0", "eelayers.1"}
        assert outputs.keys() == below | {"expansions.0.0", "expansions.0.1", "expansions.1.0"}
        graph = {name for name, output in outputs.items() if output.grad_fn is not None}
        assert graph & (below - {"embed_tokens"}) == (set() if only_expansion else below - {"embed_tokens"})
        assert outputs.keys() - below <= graph or checkpointing is not None
        # torch's own checkpoint keeps a block's input before the block is called: here that of each branch's first.
        inputs = len(exits) if checkpointing == {"use_reentrant": False} else 0
        assert saved["above"] > 0 and (saved["below"] == inputs) == only_expansion


def test_the_expanded_last_exit_keeps_the_whole_trunk_without_a_graph():
    family = make_family(blocks={"large": 1})
    family.freeze_except(["large"], only_expansion=True)
    outputs, saved = watch(family)
    with counted(saved):
        loss_of(family, ["large"], packed=False)
    assert {name for name, output in outputs.items() if output.grad_fn is not None} == {"expansions.2.0"}
    assert saved["below"] == 0 < saved["above"]


@pytest.mark.parametrize("packed", [False, True])
def test_ordinary_training_gives_every_parameter_its_gradient(packed):
    family = make_family()
    assert family.freeze_except(EXITS) == []
    loss_of(family, EXITS, packed).backward()
    assert all(parameter.grad.any() for parameter in family.parameters())


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_whatever_else_is_trained_below_keeps_its_graph(checkpointing):
    """As an adapter inside a frozen layer is: the graph begins with the first layer that holds one."""
    whole = make_family()
    loss_of(whole, ["small", "large"], packed=False).backward()
    wanted = gradients(whole)
    name = "model.layers.1.self_attn.v_proj.weight"
    family = make_family()
    family.freeze_except(["small", "large"], only_expansion=True)
    family.get_parameter(name).requires_grad_(True)
    if checkpointing is not None:
        family.gradient_checkpointing_enable(checkpointing)
    outputs, _ = watch(family)
    loss_of(family, ["small", "large"], packed=False).backward()
    found = gradients(family)
    assert found.keys() == named_as_trained(family, ["small", "large"]) | {name}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-4)
    assert not outputs["layers.0"].requires_grad and outputs["layers.2"].requires_grad


def test_a_callers_embeddings_keep_their_graph():
    family = make_family()
    family.freeze_except(["small"], only_expansion=True)
    given = family.model.embed_tokens(IDS).detach().requires_grad_()
    family(inputs_embeds=given, attention_mask=MASK, labels=LABELS, exits="small").loss.backward()
    found, stock = given.grad.clone(), family.branch("small")
    assert found.any() and gradients(family).keys() == named_as_trained(family, ["small"])
    given.grad = None
    stock(inputs_embeds=given, attention_mask=MASK, labels=LABELS).loss.backward()
    torch.testing.assert_close(found[MASK.bool()], given.grad[MASK.bool()], atol=1e-5, rtol=1e-4)


def test_shared_heads_are_frozen_with_the_rest():
    family = make_family(shared_heads=True)
    frozen = family.freeze_except(["small"], only_expansion=True)
    assert "lm_head.weight" in frozen
    loss_of(family, ["small"], packed=True).backward()
    assert gradients(family).keys() == named_as_trained(family, ["small"])


def test_without_gradients_and_in_inference_mode_nothing_is_marked():
    family = make_family()
    family.freeze_except(["small"], only_expansion=True)
    family.gradient_checkpointing_enable({"use_reentrant": True})
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert not loss_of(family.eval(), ["small"], packed=False).requires_grad


def test_an_exit_without_new_blocks_is_refused():
    family = make_family()
    before = [parameter.requires_grad for parameter in family.parameters()]
    with pytest.raises(ValueError, match=r"exits \['medium'\] have no expansion blocks; this family's: {'small': 3"):
        family.freeze_except(["small", "medium"], only_expansion=True)
    assert [parameter.requires_grad for parameter in family.parameters()] == before
