"""Every implementation of attention inside a pack against the definition of it, a softmax over one dense mask."""

import itertools

import pytest
import torch
from transformers import AttentionInterface

from ruyi_rl.family import Family, attention, varlen_attention
from ruyi_rl.family.attention import NAME, PackedAttention, family_attention
from ruyi_rl.family.joined_attention import BLOCK, WASTE, JoinedAttention, attention_plan, length_batches
from ruyi_rl.family.masked_attention import masked_attention, masked_plan
from ruyi_rl.family.varlen_attention import varlen_plan

LAYOUTS = {
    "one segment": ([7], [-1]),
    "one token": ([1], [-1]),
    "prompts only": ([3, 1, 9], [-1, -1, -1]),
    "one prompt": ([5, 4, 4, 1], [-1, 0, 0, 0]),
    "a prompt that nobody follows": ([4, 6, 3, 3], [-1, -1, 1, 1]),
    "prompts of one token": ([1, 1, 2, 1], [-1, -1, 0, 1]),
    "not in the order of the prompts": ([3, 3, 8, 2, 2, 7], [-1, -1, 1, 0, 1, 0]),
    "several batches": ([2, 40, 2, 11, 33, 90, 1, 5, 64], [-1, -1, -1, 1, 0, 1, 1, 2, 0]),
    "whole blocks": ([2 * BLOCK, BLOCK, BLOCK + 1, BLOCK - 1], [-1, -1, 0, 1]),
}


def definition(query, key, value, lengths, prompts, scale):
    """A query sees its segment's tokens up to itself, and the whole of its prompt."""
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    own = (segment[:, None] == segment) & torch.ones(len(segment), len(segment)).tril().bool()
    above = torch.tensor(prompts)[segment][:, None] == segment
    groups = query.shape[1] // key.shape[1]
    key, value = (tokens.repeat_interleave(groups, dim=1) for tokens in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~(own | above), -torch.inf).softmax(-1), value)


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's kernel of this name documents, sequence by sequence: causal means aligned to the last key."""
    assert window_size == (-1, 0) and enable_gqa and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    outs = []
    for (start, stop), (first, last) in zip(
        itertools.pairwise(cu_seq_q.tolist()), itertools.pairwise(cu_seq_k.tolist())
    ):
        q, k, v = (part.transpose(0, 1) for part in (query[start:stop], key[first:last], value[first:last]))
        mask = torch.ones(stop - start, last - first).tril(diagonal=(last - first) - (stop - start)).bool()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)


IMPLEMENTATIONS = {
    "joined": lambda q, k, v, lengths, prompts, scale: JoinedAttention.apply(
        q, k, v, attention_plan(lengths, prompts), scale
    ),
    "masked": lambda q, k, v, lengths, prompts, scale: masked_attention(q, k, v, masked_plan(lengths, prompts), scale),
    "varlen": lambda q, k, v, lengths, prompts, scale: varlen_attention.varlen_attention(
        q, k, v, varlen_plan(lengths, prompts), scale
    ),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_attn)
    return IMPLEMENTATIONS[request.param]


def random_tokens(lengths, heads=4, kv_heads=2, dim=8, dtype=torch.float64, seed=0):
    """Query, key, value and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads, kv_heads, kv_heads, heads)
    made = [torch.randn(sum(lengths), count, dim, generator=generator, dtype=torch.float64) for count in counts]
    return [tensor.to(dtype) for tensor in made]


def with_gradients(attend, inputs, gradient):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = attend(*leaves)
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_equals_the_definition(attend, lengths, prompts, scale=0.3, atol=1e-12, **tokens):
    *inputs, gradient = random_tokens(lengths, **tokens)
    found = with_gradients(lambda *qkv: attend(*qkv, lengths, prompts, scale), inputs, gradient)
    wanted = with_gradients(
        lambda *qkv: definition(*qkv, lengths, prompts, scale), [x.double() for x in inputs], gradient.double()
    )
    for ours, theirs in zip(found, wanted):
        assert ours.dtype == inputs[0].dtype
        torch.testing.assert_close(ours.double(), theirs, atol=atol, rtol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_equals_the_definition(implementation, layout):
    assert_equals_the_definition(implementation, *LAYOUTS[layout])


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_random_packs_and_heads(implementation, heads, kv_heads, dtype, atol):
    generator = torch.Generator().manual_seed(heads + kv_heads)
    for seed in range(4):
        shared = int(torch.randint(1, 4, (), generator=generator))
        own = int(torch.randint(0, 9, (), generator=generator))
        lengths = torch.randint(1, 50, (shared + own,), generator=generator).tolist()
        prompts = [-1] * shared + torch.randint(0, shared, (own,), generator=generator).tolist()
        assert_equals_the_definition(
            implementation, lengths, prompts, atol=atol, heads=heads, kv_heads=kv_heads, dtype=dtype, seed=seed
        )


def test_bfloat16_is_within_its_rounding(implementation):
    assert_equals_the_definition(
        implementation, *LAYOUTS["several batches"], atol=4e-2, dtype=torch.bfloat16, heads=4, kv_heads=1, dim=16
    )


def test_joined_gradients_equal_finite_differences():
    lengths, prompts = [3, 2, 4, 1], [-1, -1, 0, 1]
    plan = attention_plan(lengths, prompts)
    inputs = [x.requires_grad_() for x in random_tokens(lengths, heads=2, kv_heads=1, dim=3)[:3]]
    assert torch.autograd.gradcheck(lambda *qkv: JoinedAttention.apply(*qkv, plan, 0.7), inputs)


def test_large_scores_leave_finite_gradients(implementation):
    """What stands in the padding of a batch row must not overflow into the row's tokens."""
    lengths, prompts = [3, 40, 7, 33], [-1, -1, 0, 1]
    query, key, value, gradient = random_tokens(lengths, dtype=torch.float32)
    found = with_gradients(
        lambda *qkv: implementation(*qkv, lengths, prompts, 1.0), [30 * query, 3 * key, value], gradient
    )
    assert all(torch.isfinite(tensor).all() for tensor in found)


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [10, 8, 7, 1], [1, 100, 81, 80, 79, 2, 64], list(range(1, 60))])
def test_rows_of_like_length_share_a_batch(lengths):
    batches = length_batches(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        longest = lengths[batch[0]]
        assert all(lengths[row] >= (1 - WASTE) * longest for row in batch)
        # No batch is cut before it must be.
        assert following is None or lengths[following[0]] < (1 - WASTE) * longest
    assert length_batches(lengths) == batches


def test_a_prompts_keys_are_never_padded_or_repeated():
    lengths, prompts = [6, 9, 9, 4, 4, 4, 4, 20], [-1, -1, -1, 0, 1, 1, 2, 2]
    plan = attention_plan(lengths, prompts)
    assert all(keys.padding is None for _, keys in plan.prefix)
    asked = torch.cat([keys.index.flatten() for _, keys in plan.prefix])
    assert sorted(asked.tolist()) == list(range(24))
    assert sorted(torch.cat([queries.places for queries, _ in plan.prefix]).tolist()) == list(range(24, 60))


def qkv(batch=2, length=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, heads, length, 8, generator=generator) for heads in (4, 2, 2)]


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_without_a_pack_the_named_implementation_runs(backbone, name):
    module = Family.from_scratch(backbone("qwen3"), {"only": 4}).model.layers[0].self_attn
    plain = AttentionInterface().get_interface(name, attention.eager_attention_forward)
    mask = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    for given in (None, mask):
        if given is None and name == "eager":
            continue
        found = family_attention(module, *qkv(), given, scaling=0.3, implementation=name)
        wanted = plain(module, *qkv(), given, scaling=0.3, dropout=0.0)
        assert all(torch.equal(x, y) if y is not None else x is None for x, y in zip(found, wanted))


def test_flash_attention_is_asked_for_by_its_own_name(backbone, monkeypatch):
    """Which version to load it reads from the configuration of the layer's module, not from the family's."""
    asked = []

    def load(implementation, *_, **__):
        asked.append(implementation)
        raise InterruptedError

    monkeypatch.setattr("transformers.modeling_flash_attention_utils._lazy_imports", load)
    family = Family.from_scratch(backbone("qwen3"), {"small": 1, "large": 4})
    family.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InterruptedError):
        family(torch.arange(7)[None])
    assert asked == ["flash_attention_2"]


def test_the_families_implementation_is_still_the_users_choice(backbone, padded_batch, monkeypatch):
    family = Family.from_scratch(backbone(), {"small": 1, "large": 4})
    ids, mask = padded_batch
    by_default = family(ids, mask).logits
    called = []
    known = attention.ALL_ATTENTION_FUNCTIONS.get_interface
    monkeypatch.setattr(
        type(attention.ALL_ATTENTION_FUNCTIONS),
        "get_interface",
        lambda self, name, default: called.append(name) or known(name, default),
    )
    for name in ("eager", "sdpa"):
        family.set_attn_implementation(name)
        assert family.config._attn_implementation == name
        assert family.branch("small").config._attn_implementation == name
        called.clear()
        logits = family(ids, mask).logits
        # The layers themselves ask for the family's attention, and that for the one that was set.
        assert called.count(NAME) == called.count(name) == 6
        for exit in family.exits:
            torch.testing.assert_close(logits[exit][mask.bool()], by_default[exit][mask.bool()], atol=1e-5, rtol=0)


def test_dropout_takes_the_masked_form_and_its_mean_is_the_plain_result():
    lengths, prompts = [6, 3, 4], [-1, 0, 0]
    query, key, value, _ = random_tokens(lengths, dtype=torch.float32)
    packed = PackedAttention(lengths, prompts, torch.device("cpu"))
    plain = packed(query, key, value, 0.3)
    draws = torch.stack([packed(query, key, value, 0.3, 0.2) for _ in range(2000)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), plain, atol=0.08, rtol=0)


def test_under_autocast_the_kernel_gets_the_narrow_dtype():
    lengths, prompts = [6, 3, 4], [-1, 0, 0]
    query, key, value, _ = random_tokens(lengths, dtype=torch.float32)
    packed = PackedAttention(lengths, prompts, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        out = packed(query, key, value.bfloat16(), 0.3)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), packed(query, key, value, 0.3), atol=3e-2, rtol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_real_kernel_on_a_gpu(layout):
    lengths, prompts = LAYOUTS[layout]
    *inputs, gradient = random_tokens(lengths, dim=64, dtype=torch.bfloat16)
    packed = PackedAttention(lengths, prompts, torch.device("cuda"))
    found = with_gradients(lambda *qkv: packed(*qkv, 0.125), [x.cuda() for x in inputs], gradient.cuda())
    assert "_varlen" in vars(packed)  # nothing fell back to masks
    wanted = with_gradients(
        lambda *qkv: definition(*qkv, lengths, prompts, 0.125), [x.double() for x in inputs], gradient.double()
    )
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours.cpu().double(), theirs, atol=4e-2, rtol=4e-2)
