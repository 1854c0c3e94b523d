"""A branch of the family is a stock Qwen: logits, generation, gradients, whatever the padding."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ruyi_rl.family import Family

EXITS = {"small": 0, "medium": 2, "large": 4}
KINDS = [(kind, tied, shared) for kind in ("qwen2", "qwen3") for tied in (False, True) for shared in (False, True)]


def randomized(family: Family) -> Family:
    """Untrained branches copy the base; give every exit weights of its own."""
    torch.manual_seed(7)
    for name, parameter in family.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return family


@pytest.mark.parametrize("kind, tied, shared", KINDS)
def test_logits_equal_stock_branch(backbone, padded_batch, kind, tied, shared):
    family = randomized(Family.from_scratch(backbone(kind, tie_word_embeddings=tied), EXITS, shared))
    ids, mask = padded_batch
    together = family(ids, mask).logits
    assert list(together) == list(EXITS)
    for name, depth in EXITS.items():
        stock = family.branch(name)
        assert type(stock).__name__ == {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[kind]
        assert stock.config.num_hidden_layers == depth + 1
        expected = stock(ids, attention_mask=mask).logits
        for logits in (together[name], family(ids, mask, exits=name).logits[name]):
            torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind, tied, shared", KINDS)
def test_generate_equals_stock_branch(backbone, padded_batch, kind, tied, shared):
    family = randomized(Family.from_scratch(backbone(kind, tie_word_embeddings=tied), EXITS, shared))
    ids, mask = padded_batch
    mask[1] = 1
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "output_logits": True}
    for name in EXITS:
        expected = family.branch(name).generate(ids, return_dict_in_generate=True, **how)
        with family.at_exit(name):
            actual = family.generate(ids, return_dict_in_generate=True, **how)
            uncached = family.generate(ids, use_cache=False, **how)
        assert torch.equal(actual.sequences, expected.sequences)
        assert torch.equal(uncached, expected.sequences)
        torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-5, rtol=0)


def test_rows_leave_at_their_exit(backbone, padded_batch):
    family = randomized(Family.from_scratch(backbone(), EXITS))
    ids, mask = padded_batch
    alone = family(ids, mask).logits
    rows = {"large": 3, "medium": 3, "small": 3}
    mixed = family(torch.cat([ids] * 3), torch.cat([mask] * 3), exits=rows).logits
    for name in EXITS:
        torch.testing.assert_close(mixed[name][mask.bool()], alone[name][mask.bool()], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="deepest exit first"):
        family(torch.cat([ids] * 2), exits={"small": 3, "large": 3})
    with pytest.raises(ValueError, match="add up to 4"):
        family(ids, exits={"large": 2, "small": 2})


def test_log_probs_equal_logits(backbone, padded_batch):
    family = randomized(Family.from_scratch(backbone(), EXITS))
    ids, mask = padded_batch
    labels = ids.masked_fill(mask == 0, -100)
    scored = family(ids, mask, labels=labels, output="log_probs", temperature=0.7)
    logits = family(ids, mask).logits
    counted = labels[:, 1:] != -100
    for name in EXITS:
        log_p = torch.log_softmax(logits[name][:, :-1].double() / 0.7, -1)
        expected = log_p.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~counted, 0)
        torch.testing.assert_close(scored.log_probs[name].double(), expected, atol=1e-5, rtol=1e-5)
        entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(~counted, 0)
        torch.testing.assert_close(scored.entropy[name].double(), entropy, atol=1e-5, rtol=1e-5)
        assert torch.equal(scored.is_top1[name], (log_p.argmax(-1) == ids[:, 1:]) & counted)


def test_packed_positions_equal_separate_rows(backbone):
    family = randomized(Family.from_scratch(backbone(), EXITS))
    torch.manual_seed(1)
    first, second = torch.randint(2, 97, (1, 5)), torch.randint(2, 97, (1, 8))
    positions = torch.cat([torch.arange(5), torch.arange(8)])[None]
    packed = family(torch.cat([first, second], 1), position_ids=positions).logits
    for name in EXITS:
        torch.testing.assert_close(packed[name][:, :5], family(first).logits[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(packed[name][:, 5:], family(second).logits[name], atol=1e-5, rtol=0)


def test_gradient_checkpointing_gives_equal_gradients(backbone, padded_batch):
    ids, mask = padded_batch
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for checkpointed in (False, True):
        family = randomized(Family.from_scratch(backbone(), EXITS)).train()
        if checkpointed:
            family.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in [*family.model.layers, *family.model.eelayers])
        outputs = family(ids, mask, labels=labels, output="log_probs")
        sum(outputs.log_probs[name].sum() for name in EXITS).backward()
        gradients.append({name: p.grad for name, p in family.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-5)


def test_untrained_branch_is_the_truncated_base(backbone, padded_batch):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_config(backbone()).eval()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    family = Family.from_base(base, EXITS)
    ids, mask = padded_batch
    logits = family(ids, mask).logits
    for name, depth in EXITS.items():
        cut = base.model.layers[: depth + 1]
        hidden, base.model.layers = base.model.layers, cut
        base.config.num_hidden_layers = depth + 1
        torch.testing.assert_close(logits[name], base(ids, attention_mask=mask).logits, atol=1e-5, rtol=0)
        base.model.layers, base.config.num_hidden_layers = hidden, len(hidden)
    with torch.no_grad():
        family.model.layers[0].mlp.up_proj.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_scope_ends_and_belongs_to_one_family(backbone, padded_batch):
    ids, mask = padded_batch
    one, other = (Family.from_scratch(backbone(), EXITS, seed=seed) for seed in (1, 2))
    with one.at_exit("small"):
        assert torch.is_tensor(one(ids, mask).logits)
        with one.at_exit("large"):
            assert torch.equal(one(ids, mask).logits, one(ids, mask, exits="large").logits["large"])
        assert torch.equal(one(ids, mask).logits, one(ids, mask, exits="small").logits["small"])
        assert set(other(ids, mask).logits) == set(EXITS)
    assert set(one(ids, mask).logits) == set(EXITS)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, ids: f(ids, exits="huge"), "no such exit.*huge.*small"),
        (lambda f, ids: f(ids, exits=[]), "no such exit"),
        (lambda f, ids: f(ids, use_cache=True), "one exit"),
        (lambda f, ids: f(ids, output="log_probs"), "labels"),
        (lambda f, ids: f(ids, output="probabilities"), "probabilities"),
        (lambda f, ids: f.branch("huge"), "huge"),
    ],
)
def test_bad_calls_are_named(backbone, padded_batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(Family.from_scratch(backbone(), EXITS), padded_batch[0])


def test_freezing_leaves_only_what_the_exits_run_through(backbone, padded_batch):
    ids, mask = padded_batch
    labels = ids.masked_fill(mask == 0, -100)
    for chosen in (["small"], ["medium"], ["small", "medium"], ["large"], list(EXITS)):
        family = Family.from_scratch(backbone(), EXITS).train()
        frozen = family.freeze_except(chosen)
        scored = family(ids, mask, labels=labels, exits=chosen, output="log_probs")
        sum(scored.log_probs[name].sum() for name in chosen).backward()
        for name, parameter in family.named_parameters():
            assert (parameter.grad is None) == (name in frozen), name


def test_branch_parameters_counts_the_stock_model(backbone):
    for shared in (False, True):
        family = Family.from_scratch(backbone(), EXITS, shared)
        for name in EXITS:
            assert family.branch_parameters(name) == sum(p.numel() for p in family.branch(name).parameters())


def test_branch_copies_or_shares(backbone):
    family = Family.from_scratch(backbone(), EXITS)
    weight = family.model.eelayers[0].mlp.up_proj.weight
    copied, shared = family.branch("small"), family.branch("small", copy=False)
    with torch.no_grad():
        weight.zero_()
    assert copied.model.layers[0].mlp.up_proj.weight.abs().sum() > 0
    assert shared.model.layers[0].mlp.up_proj.weight.abs().sum() == 0
