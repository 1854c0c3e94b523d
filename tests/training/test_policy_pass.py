"""The packed pass against stock branches, row by row and unpadded, and against the padded pass."""

import random
from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from ruyi_rl.family import Family
from ruyi_rl.family.weights import branch_sources
from ruyi_rl.training.policy_pass import CompletionRows, packed_pass, padded_pass
from ruyi_rl.training.token_budget import balanced_packs, packs_needed

EXITS = {"small": 0, "medium": 1, "large": 3}
TEMPERATURE = 0.7
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-9)}  # of log-probs, and relative of gradients


def make_family(kind="qwen3", heads="separate", exits=EXITS, seed=0) -> Family:
    """Every exit with weights of its own; Qwen2 with the biases that a trained one has."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": max(exits.values()) + 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": heads == "tied",
    }
    backbone = Qwen2Config(**shape) if kind == "qwen2" else Qwen3Config(**shape, head_dim=8)
    family = Family.from_scratch(backbone, exits, shared_heads=heads != "separate")
    torch.manual_seed(seed)
    for parameter in family.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return family


@pytest.fixture
def exact(monkeypatch):
    """The stock norms and rotary embeddings round to float32 inside; for float64 they are made exact."""

    def norm(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self, x, position_ids):
        angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def apply(dtype):
        if dtype == torch.float64:
            for module, name in ((modeling_qwen2, "Qwen2"), (modeling_qwen3, "Qwen3")):
                monkeypatch.setattr(getattr(module, f"{name}RMSNorm"), "forward", norm)
                monkeypatch.setattr(getattr(module, f"{name}RotaryEmbedding"), "forward", rotary)

    return apply


@dataclass
class Drawn:
    """Random rows, padded and as they are, and the weights of the loss that stands for any."""

    rows: CompletionRows
    plain: list[tuple[int, torch.Tensor, torch.Tensor]]
    """Of each row the exit's index, prompt and completion."""
    weights: tuple[torch.Tensor, torch.Tensor]
    """Of each log-prob and each entropy; (rows, completion length)."""

    def loss(self, scored, rows=slice(None)):
        return (scored.log_probs * self.weights[0][rows]).sum() + (scored.entropies * self.weights[1][rows]).sum()

    def select(self, chosen):
        return self.rows.select(torch.tensor(chosen))


def draw(seed, exits, dtype, left, shortest=0, silent=None, in_order=False) -> Drawn:
    """Rows of random prompts, numbers of samples and lengths; the exit `silent` gets completions without tokens."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    width, length, samples = generator.randint(1, 12), generator.randint(2, 40), generator.randint(1, 3)
    prompts = [torch.randint(0, 61, (generator.randint(1, width),)) for _ in range(generator.randint(1, 3))]
    plain = [
        (number, exit, torch.randint(0, 61, (0 if exit == silent else generator.randint(shortest, length),)))
        for exit in range(exits)
        for number in range(len(prompts))
        for _ in range(samples)
    ]
    if not in_order:
        generator.shuffle(plain)
    ids, mask = (torch.zeros(len(plain), width + length, dtype=torch.int64) for _ in range(2))
    for row, (number, _, completion) in enumerate(plain):
        start = width - len(prompts[number]) if left else 0
        for at, tokens in ((start, prompts[number]), (width, completion)):
            ids[row, at : at + len(tokens)], mask[row, at : at + len(tokens)] = tokens, 1
    columns = [torch.tensor(column) for column in list(zip(*plain))[:2]]
    counted = mask[:, width:].to(dtype)
    return Drawn(
        CompletionRows(ids, mask, length, *columns),
        [(exit, prompts[number], completion) for number, exit, completion in plain],
        (torch.randn(counted.shape).to(dtype) * counted, torch.randn(counted.shape).to(dtype) * counted),
    )


def gradients(family) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None}
    family.zero_grad()
    return found


def of_stock_branches(family, names, drawn):
    """Log-probs and entropies (rows, length), and the gradients of the loss by the family's names."""
    log_probs, entropies = (torch.zeros_like(weights) for weights in drawn.weights)
    total: dict[str, torch.Tensor] = {}
    for exit, name in enumerate(names):
        stock = family.branch(name)
        loss = 0.0 * sum(parameter.sum() for parameter in stock.parameters())
        for row, (owner, prompt, completion) in enumerate(drawn.plain):
            if owner != exit or not len(completion):
                continue
            logits = stock(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
            log_p = logits.log_softmax(-1)
            chosen, entropy = log_p.gather(1, completion[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
            at = row, slice(0, len(completion))
            log_probs[at], entropies[at] = chosen.detach(), entropy.detach()
            loss = loss + (chosen * drawn.weights[0][at]).sum() + (entropy * drawn.weights[1][at]).sum()
        loss.backward()
        sources = branch_sources(family.config, name, [n for n, _ in stock.named_parameters()])
        for stock_name, gradient in gradients(stock).items():
            total[sources[stock_name]] = total.get(sources[stock_name], 0) + gradient
    return log_probs, entropies, total


def assert_same_gradients(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    scale = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # Relative to the parameter's own gradient; a key's bias has none but for rounding.
        error = (found[name] - gradient).norm() / torch.maximum(gradient.norm(), 1e-3 * scale).clamp(min=1e-12)
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", ["separate", "shared", "tied"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_packed_rows_equal_stock_branches(exact, kind, heads, dtype):
    exact(dtype)
    family = make_family(kind, heads).to(dtype)
    names = ["large", "medium", "small"]
    for seed, left in ((1, True), (2, False), (3, True)):
        drawn = draw(seed, 3, dtype, left)
        log_probs, entropies, wanted = of_stock_branches(family, names, drawn)
        scored = packed_pass(family, drawn.rows, names, TEMPERATURE)
        assert scored.log_probs.dtype == dtype
        torch.testing.assert_close(scored.log_probs.detach(), log_probs, atol=TOLERANCES[dtype][0], rtol=1e-6)
        torch.testing.assert_close(scored.entropies.detach(), entropies, atol=TOLERANCES[dtype][0], rtol=1e-6)
        drawn.loss(scored).backward()
        assert_same_gradients(gradients(family), wanted, TOLERANCES[dtype][1])


@pytest.mark.parametrize("exits", [{"only": 2}, {"a": 1, "b": 2}, {"a": 0, "b": 1, "c": 2, "d": 3}, {"a": 0, "b": 5}])
def test_any_exits(exact, exits):
    exact(torch.float64)
    family = make_family(exits=exits).double()
    names = list(exits)[::-1]
    drawn = draw(len(exits), len(exits), torch.float64, left=True)
    log_probs, _, wanted = of_stock_branches(family, names, drawn)
    scored = packed_pass(family, drawn.rows, names, TEMPERATURE)
    torch.testing.assert_close(scored.log_probs.detach(), log_probs, atol=1e-9, rtol=0)
    drawn.loss(scored).backward()
    assert_same_gradients(gradients(family), wanted, 1e-9)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_packs_of_any_budget_equal_the_padded_pass(exact, dtype):
    exact(dtype)
    family = make_family().to(dtype)
    names = ["large", "medium", "small"]
    counts = set()
    for seed in range(6):
        drawn = draw(seed, 3, dtype, left=True, in_order=True)
        padded = padded_pass(family, drawn.rows, names, TEMPERATURE)
        drawn.loss(padded).backward()
        wanted = gradients(family)
        blocks = drawn.rows.blocks(3)
        for budget in (None, random.Random(seed).randint(1, 150)):
            packs = balanced_packs(blocks, packs_needed(blocks, budget), budget)
            counts.add(len(packs))
            for pack in packs:
                scored = packed_pass(family, drawn.select(pack), names, TEMPERATURE)
                for ours, theirs in zip((scored.log_probs, scored.entropies), (padded.log_probs, padded.entropies)):
                    # The padded pass has values beyond a completion's end too, where nothing counts.
                    counted = drawn.weights[0][pack] != 0
                    assert not ours[~counted].any()
                    torch.testing.assert_close(
                        ours[counted], theirs[pack][counted], atol=TOLERANCES[dtype][0], rtol=1e-6
                    )
                drawn.loss(scored, pack).backward()
            assert_same_gradients(gradients(family), wanted, TOLERANCES[dtype][1])
    assert len(counts) > 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    family = make_family().train()
    names = ["large", "medium", "small"]
    drawn = draw(4, 3, torch.float32, left=True)
    drawn.loss(packed_pass(family, drawn.rows, names, TEMPERATURE)).backward()
    wanted = gradients(family)
    family.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ran = []
    for layer in family.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    drawn.loss(packed_pass(family, drawn.rows, names, TEMPERATURE)).backward()
    assert len(ran) == 2 * len(family.model.layers)  # once forwards, once again for the backward pass
    assert_same_gradients(gradients(family), wanted, 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("chosen", [["small"], ["large"], ["medium", "small"], ["large", "small"]])
def test_every_trained_parameter_gets_a_gradient(chosen, dtype):
    """Even of an exit that has not one token in the pack: ZeRO-3 must not wait for what does not come."""
    for silent in (None, 0):
        family = make_family().to(dtype).train()
        frozen = family.freeze_except(chosen)
        drawn = draw(5, len(chosen), dtype, left=True, shortest=1, silent=silent)
        drawn.loss(packed_pass(family, drawn.rows, chosen, TEMPERATURE)).backward()
        for name, parameter in family.named_parameters():
            assert (parameter.grad is None) == (name in frozen), name
        if silent is not None:
            index = list(EXITS).index(chosen[silent])
            assert not family.lm_head[index].weight.grad.any() and not family.model.norms[index].weight.grad.any()


def test_each_layer_computes_only_what_is_active():
    """P·D + Σ_e G·(R-1)·d_e token-layers a prompt, of layers that see ever fewer tokens."""
    family = make_family()
    seen = {}
    for name, layer in [*family.model.layers.named_children(), *family.model.eelayers.named_children()]:
        kind = "trunk" if layer in set(family.model.layers) else "own"
        layer.register_forward_hook(
            lambda module, args, out, key=(kind, int(name)): seen.update({key: args[0].shape[1]})
        )
    drawn = draw(6, 3, torch.float32, left=False, shortest=1)
    prompts = {
        int(n): int(m[: -drawn.rows.completion_length].sum())
        for n, m in zip(drawn.rows.prompt_numbers, drawn.rows.attention_mask)
    }
    prompt = sum(prompts.values())
    large, medium, small = (sum(len(c) - 1 for exit, _, c in drawn.plain if exit == e) for e in range(3))
    with torch.no_grad():
        packed_pass(family, drawn.rows, ["large", "medium", "small"], TEMPERATURE)
    assert seen == {
        ("trunk", 0): prompt + large + medium,
        ("trunk", 1): prompt + large,
        ("trunk", 2): prompt + large,
        ("trunk", 3): prompt + large,
        ("own", 0): prompt + small,
        ("own", 1): prompt + medium,
    }
    assert sum(block.tokens for block in drawn.rows.blocks(3)) == prompt + large + medium + small


def test_a_pack_of_the_wrong_shape_or_order_is_refused():
    family = make_family()
    drawn = draw(7, 2, torch.float32, left=True, shortest=2)
    with pytest.raises(ValueError, match="deepest first"):
        packed_pass(family, drawn.rows, ["small", "large"], 1.0)
    with pytest.raises(ValueError, match="no such exit"):
        packed_pass(family, drawn.rows, ["large", "huge"], 1.0)
