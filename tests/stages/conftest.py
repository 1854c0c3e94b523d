import pytest


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """A family whose three exits disagree (random weights, large and different everywhere), and the byte tokenizer."""
    import torch
    from transformers import GenerationConfig, Qwen3Config

    from ruyi_rl.data.tokenizer import byte_tokenizer
    from ruyi_rl.family import Family

    tokenizer = byte_tokenizer()
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,  # the smallest that vLLM takes on a CPU
        "initializer_range": 0.3,
        "max_position_embeddings": 256,
    }
    exits = {"small": 0, "medium": 1, "large": 3}
    family = Family.from_scratch(Qwen3Config(vocab_size=len(tokenizer), **shape, **tokens), exits, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    family.generation_config = GenerationConfig(**tokens)
    folder = tmp_path_factory.mktemp("tools") / "family"
    family.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def export_config():
    """The configuration of `stage=export` without vLLM, for `run_tool_command`."""
    from ruyi_rl.cli.compose import compose_config, to_run_config

    return to_run_config(compose_config(["stage=export", "export.check=logits", "run_dir=run"]))
