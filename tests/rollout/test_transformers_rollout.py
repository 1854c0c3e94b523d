import pytest
import torch
from transformers import GenerationConfig, Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.selection import make_rollout
from ruyi_rl.rollout.transformers import TransformersRollout, cut_at_end, end_token_ids
from ruyi_rl.rollout.worker import Sampling

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


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_greedy_equals_the_stock_branch_alone(family, tokenizer, exit, batch_size):
    """Padding, sorting by length and batching change no token and no order."""
    rollout = TransformersRollout(family, tokenizer, batch_size)
    completions = rollout.generate(exit, PROMPTS, Sampling(max_new_tokens=7, temperature=0))
    stock = family.branch(exit)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        alone = stock.generate(torch.tensor([prompt]), max_new_tokens=7, do_sample=False)[0, len(prompt) :]
        assert completion == cut_at_end(alone.tolist(), [tokenizer.eos_token_id])


def test_samples_follow_the_distribution(family, tokenizer):
    """First tokens of many draws against softmax(logits / temperature) of the stock branch."""
    rollout = TransformersRollout(family, tokenizer, 4000)
    drawn = rollout.generate("large", [PROMPTS[1]] * 4000, Sampling(max_new_tokens=1, temperature=0.8, seed=3))
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=len(tokenizer))
    logits = family.branch("large")(torch.tensor([PROMPTS[1]])).logits[0, -1]
    expected = torch.softmax(logits / 0.8, -1)
    assert (counts / 4000 - expected).abs().sum() / 2 < 0.08  # total variation; a wrong temperature gives over .1
    wrong = torch.softmax(logits / 1.6, -1)
    assert (counts / 4000 - wrong).abs().sum() / 2 > 0.1


def test_the_seed_decides_and_nothing_else_is_touched(family, tokenizer):
    rollout = TransformersRollout(family, tokenizer, 6)
    sampling = Sampling(max_new_tokens=8, seed=11)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rollout.generate("small", PROMPTS, sampling)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert rollout.generate("small", PROMPTS, sampling) == first
    assert rollout.generate("small", PROMPTS, Sampling(max_new_tokens=8, seed=12)) != first


def test_training_mode_comes_back(family, tokenizer):
    family.train()
    TransformersRollout(family, tokenizer).generate("small", PROMPTS[:2], Sampling(max_new_tokens=2))
    assert family.training
    family.eval()


def test_cut_keeps_the_end_token_and_a_pad_inside():
    assert cut_at_end([5, 0, 7, 1, 0, 0], [1]).token_ids == [5, 0, 7, 1]
    assert cut_at_end([5, 0, 7, 1], [1]).finished
    assert not cut_at_end([5, 0, 7], [1]).finished
    assert cut_at_end([5, 0, 7], [1]).token_ids == [5, 0, 7]


def test_the_models_own_generation_config_does_not_leak(family, tokenizer):
    """A published generation config may name filters that the sampling did not ask for."""
    rollout = TransformersRollout(family, tokenizer, 100)
    sampling = Sampling(max_new_tokens=6, seed=5)
    plain = rollout.generate("large", PROMPTS, sampling)
    greedy = rollout.generate("large", PROMPTS, Sampling(max_new_tokens=6, temperature=0))
    declared = family.generation_config
    family.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_k=2, top_p=0.5, min_p=0.5, typical_p=0.5, no_repeat_ngram_size=1
    )
    family.generation_config.eos_token_id = declared.eos_token_id
    try:
        assert rollout.generate("large", PROMPTS, sampling) == plain
        assert rollout.generate("large", PROMPTS, Sampling(max_new_tokens=6, temperature=0)) == greedy
        assert family.generation_config.top_k == 2
    finally:
        family.generation_config = declared


def test_every_declared_end_counts(family, tokenizer):
    family.generation_config.eos_token_id = [9, tokenizer.eos_token_id]
    assert end_token_ids(family, tokenizer) == [tokenizer.eos_token_id, 9]
    family.generation_config.eos_token_id = tokenizer.eos_token_id


def test_selection(family, tokenizer):
    for backend in ("auto", "transformers"):
        assert make_rollout(RolloutOptions(backend=backend), family, tokenizer).name == "transformers"
    with pytest.raises(ValueError, match="auto, transformers"):
        make_rollout(RolloutOptions(backend="vlm"), family, tokenizer)
