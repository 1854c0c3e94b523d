import pytest
from transformers import Qwen3Config

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family

EXITS = {"small": 0, "medium": 1, "large": 3}


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def make_family(tokenizer, tmp_path):
    """Build a small family, saved on disk as TRL's reference model needs it."""

    def make(exits=EXITS, seed: int = 0, layers: int = 4, head_dim: int = 16) -> Family:
        backbone = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=head_dim,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.2,
        )
        folder = tmp_path / f"family-{seed}-{len(exits)}"
        Family.from_scratch(backbone, exits, seed=seed).save_pretrained(folder)
        return Family.from_pretrained(folder)

    return make
