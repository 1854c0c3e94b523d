"""A base model's tokenizer ends texts, not turns: the families grown on it must stop at the end of a turn."""

from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from ruyi_rl.config import RunConfig
from ruyi_rl.data.tokenizer import PAD, TURN_END, TURN_START, byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.rollout.transformers import end_token_ids
from ruyi_rl.stages.init import run
from ruyi_rl.stages.inputs import end_at_turn_end, load_tokenizer

# Qwen's own ends a turn with a line break behind the token.
QWEN_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def base_tokenizer(template=QWEN_TEMPLATE, pad=PAD):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = PAD, pad, template
    return tokenizer


def test_a_family_grown_on_a_base_model_ends_at_the_end_of_a_turn(tmp_path):
    tokenizer = base_tokenizer()
    text_end, turn_end = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, TURN_END))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=text_end,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=text_end)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def init(base, folder):
        options = RunConfig(model=ModelOptions(base=str(base), exits={"small": 0, "large": 1}))
        run(SimpleNamespace(config=options, folder=folder, console=Console(quiet=True)))
        return Family.from_pretrained(str(folder)), AutoTokenizer.from_pretrained(folder)

    init(tmp_path / "base", tmp_path / "family")
    for base in (tmp_path / "base", tmp_path / "family"):
        family, saved = init(base, tmp_path / "init")
        assert end_token_ids(family, saved) == [turn_end, text_end]
        assert (saved.eos_token, saved.pad_token) == (TURN_END, PAD)
        assert family.config.eos_token_id == turn_end


def test_the_tokenizer_of_a_given_family_ends_at_the_end_of_a_turn(tmp_path):
    base_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (TURN_END, PAD)


def test_the_old_end_pads_where_nothing_did():
    tokenizer = base_tokenizer(pad=None)
    ends = end_at_turn_end(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (TURN_END, PAD)
    assert ends == tokenizer.convert_tokens_to_ids([TURN_END, PAD])


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{%- for message in messages -%}{{- message['content'] + '\n' -}}{%- endfor -%}",
        "{%- for message in messages -%}{{- message['content'] + '<|endoftext|>\n' -}}{%- endfor -%}",
    ],
)
def test_templates_that_name_no_other_end_change_nothing(template):
    tokenizer = base_tokenizer(template)
    assert end_at_turn_end(tokenizer) == [tokenizer.eos_token_id]
    assert tokenizer.eos_token == PAD


def test_the_embedded_tokenizer_is_left_as_it_is():
    tokenizer = byte_tokenizer()
    assert end_at_turn_end(tokenizer) == tokenizer.convert_tokens_to_ids([TURN_END])
    assert (tokenizer.eos_token, tokenizer.pad_token) == (TURN_END, PAD)
    assert TURN_START in tokenizer.get_vocab()
