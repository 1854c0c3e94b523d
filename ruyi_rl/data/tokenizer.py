"""The byte-level tokenizer of the embedded family: made here, so that nothing is downloaded."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
HEADERS = tuple(f"{TURN_START}{role}" for role in ("system", "user", "assistant"))
# One token each, so that the answers of small tasks stay short. Not special: decoding keeps them.
FREQUENT = ("\\boxed{", "<think>", "</think>", "<answer>", "</answer>")

# No line breaks between turns: a user's turn with the assistant's header costs three tokens. A turn is rendered by
# itself, so earlier turns are a prefix of the whole; the end-of-turn token is the assistant's own, to be learnt.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- elif message['role'] in ('system', 'user') -%}
{{- '<|im_start|>' + message['role'] + message['content'] + '<|im_end|>' -}}
{%- else -%}
{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant' -}}{%- endif -%}
"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, whose id is the byte's value, and eleven more from 256 on.

    These are the padding token, start and end of a turn (special), the role headers and `FREQUENT`. Any text encodes
    without loss: `decode(encode(text))` is the text. Pads on the left, as generation needs.
    """
    alphabet = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, TURN_START, TURN_END)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*HEADERS, *FREQUENT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
