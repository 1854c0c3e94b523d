import random

import pytest
from transformers import AutoTokenizer, Qwen3Config
from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained

from ruyi_rl.data.tokenizer import FREQUENT, HEADERS, PAD, TURN_END, TURN_START, byte_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " 3+5=\n"},
    {"role": "assistant", "content": "\\boxed{8} 是八 😀"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": " ok\n"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def random_text(rng):
    scalar = [c for c in (rng.randrange(0x110000) for _ in range(30)) if not 0xD800 <= c <= 0xDFFF]
    pieces = [chr(c) for c in scalar] + [chr(rng.randrange(128)) for _ in range(30)]
    pieces += rng.choices([TURN_START, TURN_END, PAD, *HEADERS, *FREQUENT, " ", "  ", "\r\n", " .", " n't"], k=10)
    rng.shuffle(pieces)
    return "".join(pieces)


def test_any_text_comes_back(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_ids_of_plain_text_are_its_bytes(tokenizer):
    text = "".join(chr(c) for c in range(0x250)) + "漢字 😀"
    assert tokenizer(text)["input_ids"] == list(text.encode())


def test_special_tokens(tokenizer):
    assert len(tokenizer) == 267
    assert tokenizer.pad_token == PAD and tokenizer.eos_token == TURN_END and tokenizer.padding_side == "left"
    assert tokenizer("\\boxed{7}" + TURN_END)["input_ids"] == [262, ord("7"), ord("}"), tokenizer.eos_token_id]
    assert tokenizer.decode([262, 55, 125, 258, 256], skip_special_tokens=True) == "\\boxed{7}"


@pytest.mark.parametrize("with_config", [False, True])
def test_saved_and_loaded(tokenizer, tmp_path, with_config):
    # A Qwen config beside it must not make transformers take a Qwen tokenizer.
    tokenizer.save_pretrained(tmp_path)
    if with_config:
        Qwen3Config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(1)
    for text in [random_text(rng) for _ in range(50)]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.apply_chat_template(TURNS, tokenize=False) == tokenizer.apply_chat_template(TURNS, tokenize=False)
    for name in ("pad_token_id", "eos_token_id", "padding_side", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert len(loaded) == len(tokenizer)


def test_earlier_turns_are_a_prefix(tokenizer):
    def render(turns, **kwargs):
        return tokenizer.apply_chat_template(turns, return_dict=False, **kwargs)

    whole = render(TURNS)
    for count in range(1, len(TURNS)):
        part = render(TURNS[:count], add_generation_prompt=TURNS[count]["role"] == "assistant")
        assert whole[: len(part)] == part


def test_overhead_of_a_turn_is_three_tokens(tokenizer):
    prompt = tokenizer.apply_chat_template([TURNS[1]], add_generation_prompt=True, return_dict=False)
    assert len(prompt) == len(TURNS[1]["content"]) + 3


def test_assistant_mask_is_the_content_and_its_end(tokenizer):
    encoded = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    masked = [i for i, bit in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if bit]
    assert tokenizer.decode(masked) == "\\boxed{8} 是八 😀" + TURN_END + " ok\n" + TURN_END
    assert is_chat_template_stop_token_trained(tokenizer)
    assert get_training_chat_template(tokenizer) is None


def test_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
