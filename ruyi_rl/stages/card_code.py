"""The lines of a model card that load and run what the folder holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruyi_rl.stages.model_card import Card

PUBLISHED_CODE = "https://github.com/TeleAI-AI-Flow/AI-Flow-Ruyi2"
"""Where the classes of the published checkpoints are."""


def loading_parts(card: Card) -> list[str]:
    """Paragraphs of the card, as Markdown."""
    if card.format == "family":
        return [_python(_family_lines(card))]
    if card.format == "ruyi":
        wanted = f", which need {' and '.join(f'`{name}`' for name in card.code)} of it in this folder"
        classes = (
            f"Or with the classes of the [published code]({PUBLISHED_CODE}){wanted if card.code else ''}, by "
            "`AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)`."
        )
        return [_python(_family_lines(card)), classes]
    parts = [_python(_transformers_lines(card))]
    if card.format == "factored":
        return [*parts, "vLLM has no class for factored layers: for vLLM export this exit with `export.format=merged`."]
    served = f" --dtype {card.dtype}" if card.dtype == "float32" else ""
    return [*parts, _python(_vllm_lines(card)), f"```bash\nvllm serve {card.address}{served}\n```"]


def _family_lines(card: Card) -> str:
    exit = card.exits[-1].name
    return (
        "from ruyi_rl.family import Family\n"
        "from transformers import AutoTokenizer\n\n"
        f'family = Family.from_pretrained("{card.address}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{card.address}")\n'
        f'with family.at_exit("{exit}"):\n'
        '    ids = family.generate(**tokenizer("…", return_tensors="pt"), max_new_tokens=256)\n'
        f'model = family.branch("{exit}")  # a stock {card.backbone}'
    )


def _transformers_lines(card: Card) -> str:
    code = ", trust_remote_code=True" if card.format == "factored" else ""
    asked = 'tokenizer("…", return_tensors="pt")'
    if card.chat:
        asked = (
            'tokenizer.apply_chat_template(\n    [{"role": "user", "content": "…"}], add_generation_prompt=True, '
            'return_dict=True, return_tensors="pt"\n)'
        )
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{card.address}"{code})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{card.address}"{code})\n'
        f"inputs = {asked}\n"
        "ids = model.generate(**inputs, max_new_tokens=256)\n"
        'print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _vllm_lines(card: Card) -> str:
    # By itself vLLM halves the precision of a float32 model.
    dtype = f', dtype="{card.dtype}"' if card.dtype == "float32" else ""
    asked = 'llm.chat([{"role": "user", "content": "…"}], sampling)' if card.chat else 'llm.generate("…", sampling)'
    return (
        "from vllm import LLM\n\n"
        f'llm = LLM("{card.address}"{dtype})\n'
        "sampling = llm.get_default_sampling_params()\n"
        "sampling.max_tokens = 256\n"
        f"print({asked}[0].outputs[0].text)"
    )


def _python(lines: str) -> str:
    return f"```python\n{lines}\n```"
