import pytest
import torch
from transformers import GenerationConfig, Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.rollout.transformers import TransformersRollout, cut_at_end, end_token_ids
from ruyi_rl.rollout.worker import Request, Sampling, request_seeds

EXITS = {"small": 0, "large": 2}
PROMPTS = [[65], [66, 67, 68], [70, 71], [72, 73, 74, 75, 76]] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def family(tokenizer):
    backbone = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    return Family.from_scratch(backbone, EXITS)


def rollout_of(family, tokenizer, batch_size=256):
    return TransformersRollout(family, tokenizer.pad_token_id, end_token_ids(family, tokenizer), batch_size)


def requests_for(exit, prompts, seed=0):
    seeds = request_seeds(seed, (), [exit] * len(prompts), prompts)
    return [Request(exit, prompt, drawn_by) for prompt, drawn_by in zip(prompts, seeds)]


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_greedy_equals_the_stock_branch_alone(family, tokenizer, exit, batch_size):
    """Padding, sorting by length and batching change no token and no order."""
    rollout = rollout_of(family, tokenizer, batch_size)
    completions = rollout.generate(requests_for(exit, PROMPTS), Sampling(max_new_tokens=7, temperature=0))
    stock = family.branch(exit)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        alone = stock.generate(torch.tensor([prompt]), max_new_tokens=7, do_sample=False)[0, len(prompt) :]
        expected = cut_at_end(alone.tolist(), [tokenizer.eos_token_id])
        assert (completion.token_ids, completion.finished) == (expected.token_ids, expected.finished)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_log_probs_are_the_stock_branchs(family, tokenizer, penalty):
    """Of the distribution at temperature 1 after the penalty, as tests/rollout/test_vllm_rollout.py has it of vLLM."""
    sampling = Sampling(max_new_tokens=7, temperature=0, repetition_penalty=penalty)
    # transformers penalises the padding too, as if it had been said: one prompt at a time has none.
    rollout = rollout_of(family, tokenizer, 5 if penalty == 1 else 1)
    completions = rollout.generate(requests_for("large", PROMPTS), sampling)
    stock = family.branch("large")
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = [*prompt, *completion.token_ids]
        logits = stock(torch.tensor([ids])).logits[0]
        for place, log_prob in enumerate(completion.log_probs, len(prompt)):
            row, seen = logits[place - 1].clone(), sorted(set(ids[:place]))
            row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
            assert log_prob == pytest.approx(row.log_softmax(-1)[ids[place]].item(), abs=1e-4)
        assert len(completion.log_probs) == len(completion.token_ids)
    drawn = rollout_of(family, tokenizer, 5).generate(requests_for("large", PROMPTS), Sampling(max_new_tokens=2))
    assert all(completion.log_probs is None for completion in drawn)


def total_variation(counts, expected):
    return (counts / counts.sum() - expected).abs().sum() / 2


def test_samples_follow_the_distribution(family, tokenizer):
    """First tokens of many draws against softmax(logits / temperature) of the stock branch."""
    rollout = rollout_of(family, tokenizer, 4000)
    requests = requests_for("large", [PROMPTS[1]] * 4000, seed=3)
    drawn = rollout.generate(requests, Sampling(max_new_tokens=1, temperature=0.8))
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=len(tokenizer))
    logits = family.branch("large")(torch.tensor([PROMPTS[1]])).logits[0, -1]
    assert total_variation(counts, torch.softmax(logits / 0.8, -1)) < 0.08  # a wrong temperature gives over .1
    assert total_variation(counts, torch.softmax(logits / 1.6, -1)) > 0.1


def test_filters_cut_the_distribution(family, tokenizer):
    rollout = rollout_of(family, tokenizer, 4000)
    requests = requests_for("large", [PROMPTS[1]] * 1000)
    order = family.branch("large")(torch.tensor([PROMPTS[1]])).logits[0, -1].softmax(-1).sort(descending=True)
    nucleus = int((order.values.cumsum(0) < 0.5).sum()) + 1
    likely = int((order.values >= 0.3 * order.values[0]).sum())
    for sampling, kept in [
        (Sampling(1, top_k=3), 3),
        (Sampling(1, top_p=0.5), nucleus),
        (Sampling(1, min_p=0.3), likely),
    ]:
        drawn = {completion.token_ids[0] for completion in rollout.generate(requests, sampling)}
        assert drawn == set(order.indices[:kept].tolist())


def test_seeds_decide_and_neither_batch_nor_order_nor_the_global_state(family, tokenizer):
    requests = requests_for("small", PROMPTS, 1) + requests_for("large", PROMPTS, 1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rollout_of(family, tokenizer, 6).generate(requests, Sampling(max_new_tokens=8))
    assert torch.equal(torch.get_rng_state(), state)
    for batch_size in (1, 100):
        assert rollout_of(family, tokenizer, batch_size).generate(requests, Sampling(max_new_tokens=8)) == first
    backwards = rollout_of(family, tokenizer, 6).generate(requests[::-1], Sampling(max_new_tokens=8))
    assert backwards[::-1] == first
    other = requests_for("small", PROMPTS, 2) + requests_for("large", PROMPTS, 2)
    assert rollout_of(family, tokenizer).generate(other, Sampling(max_new_tokens=8)) != first


def test_training_mode_comes_back(family, tokenizer):
    family.train()
    rollout_of(family, tokenizer).generate(requests_for("small", PROMPTS[:2]), Sampling(max_new_tokens=2))
    assert family.training
    family.eval()


def test_statistics_count_tokens_and_start_over(family, tokenizer):
    rollout = rollout_of(family, tokenizer)
    completions = rollout.generate(requests_for("small", PROMPTS), Sampling(max_new_tokens=3))
    found = rollout.statistics()
    assert found["small"].tokens == sum(len(completion.token_ids) for completion in completions)
    assert found["small"].seconds > 0
    assert rollout.statistics() == {}


def test_another_family_takes_over(family, tokenizer):
    rollout = rollout_of(family, tokenizer)
    other = Family.from_scratch(family.config.branch_config("large"), EXITS, seed=5)
    requests = requests_for("large", PROMPTS)
    before = rollout.generate(requests, Sampling(max_new_tokens=4))
    rollout.update_weights(other)
    assert rollout.generate(requests, Sampling(max_new_tokens=4)) != before


def test_cut_keeps_the_end_token_and_a_pad_inside():
    assert cut_at_end([5, 0, 7, 1, 0, 0], [1]).token_ids == [5, 0, 7, 1]
    assert cut_at_end([5, 0, 7, 1], [1]).finished
    assert not cut_at_end([5, 0, 7], [1]).finished
    assert cut_at_end([5, 0, 7], [1]).token_ids == [5, 0, 7]


def test_the_models_own_generation_config_does_not_leak(family, tokenizer):
    """A published generation config may name filters that the sampling did not ask for."""
    rollout, requests = rollout_of(family, tokenizer, 100), requests_for("large", PROMPTS, 5)
    plain = rollout.generate(requests, Sampling(max_new_tokens=6))
    greedy = rollout.generate(requests, Sampling(max_new_tokens=6, temperature=0))
    declared = family.generation_config
    family.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_k=2, top_p=0.5, min_p=0.5, typical_p=0.5, no_repeat_ngram_size=1
    )
    family.generation_config.eos_token_id = declared.eos_token_id
    try:
        assert rollout.generate(requests, Sampling(max_new_tokens=6)) == plain
        assert rollout.generate(requests, Sampling(max_new_tokens=6, temperature=0)) == greedy
        assert family.generation_config.top_k == 2
    finally:
        family.generation_config = declared


def test_every_declared_end_counts(family, tokenizer):
    family.generation_config.eos_token_id = [9, tokenizer.eos_token_id]
    assert end_token_ids(family, tokenizer) == [tokenizer.eos_token_id, 9]
    family.generation_config.eos_token_id = tokenizer.eos_token_id


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_completions_arrive_batch_by_batch(family, tokenizer, batch_size):
    requests = [request for exit in EXITS for request in requests_for(exit, PROMPTS)]
    sampling, seen = Sampling(max_new_tokens=5), []
    rollout = rollout_of(family, tokenizer, batch_size)
    completions = rollout.generate(requests, sampling, lambda places, done: seen.append((list(places), list(done))))
    assert len(seen) == 2 * -(-len(PROMPTS) // batch_size)
    arrived = {place: completion for places, done in seen for place, completion in zip(places, done, strict=True)}
    assert [arrived[place] for place in range(len(requests))] == completions
    assert sum(len(places) for places, _ in seen) == len(requests)
    assert completions == rollout_of(family, tokenizer, batch_size).generate(requests, sampling)


def test_every_token_beats_and_draws_stay_the_same(family, tokenizer):
    beats, requests = [], requests_for("large", PROMPTS)
    rollout = TransformersRollout(
        family, tokenizer.pad_token_id, end_token_ids(family, tokenizer), 5, lambda: beats.append(1)
    )
    completions = rollout.generate(requests, Sampling(max_new_tokens=9))
    assert completions == rollout_of(family, tokenizer, 5).generate(requests, Sampling(max_new_tokens=9))
    order = sorted(range(len(PROMPTS)), key=lambda row: len(PROMPTS[row]))
    batches = [order[first : first + 5] for first in range(0, len(order), 5)]
    assert len(beats) == sum(max(len(completions[row].token_ids) for row in batch) for batch in batches)
