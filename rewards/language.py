"""How far a completion keeps the language of its prompt.

Formula: r = words in the language / all words; 0 for a completion without words; None for a prompt of too few words.
Source: the language consistency reward of DeepSeek-R1 (https://arxiv.org/abs/2501.12948), section 2.3.2, which counts
the words of the chain of thought.

A character of a script without spaces, such as Chinese, counts as a word. Code, formulas, addresses, tags, numbers and
single letters are no words. How a word's language is found: `ruyi_rl.rewards.languages`.
"""

from ruyi_rl.rewards.completions import completion_text, without_thinking
from ruyi_rl.rewards.languages import check_language, languages, main_language

FIRST_GUESS = "en"
"""Of a prompt: it gets the benefit of the doubt."""
LEAST = 3
"""Words that a prompt needs where several languages share its script: "Compute" and a formula could be French."""


def language(completions, prompts=None, language=None, thinking=True, log_extra=None, **kwargs) -> list[float | None]:
    """One reward a completion, in [0, 1].

    Args:
        language: an ISO 639-1 code such as `zh`, or one a row. None: the language of the prompt's last user message.
        thinking: whether the thinking block counts too.

    Raises:
        ValueError: a language that cannot be told.
    """
    _start(None, thinking)
    expected = _expected(prompts, language, len(completions))
    found = []
    for completion, code in zip(completions, expected, strict=True):
        text = completion_text(completion)
        found.append(languages(text if thinking else without_thinking(text), code))
    if log_extra is not None:
        log_extra("language/expected", [code or "" for code in expected])
    return [
        None if code is None else counts[code] / max(1, counts.total())
        for counts, code in zip(found, expected, strict=True)
    ]


def _start(language=None, thinking=True, **kwargs) -> None:
    """Refuse options that are impossible."""
    if not isinstance(thinking, bool):
        raise ValueError(f"thinking is true or false, not {thinking!r}")
    if language is not None:
        check_language(language)


def _expected(prompts, language, count) -> list[str | None]:
    if language is not None:
        return [check_language(code) for code in ([language] * count if isinstance(language, str) else language)]
    if prompts is None:
        raise ValueError(
            "the language of the prompt is asked for, and no prompts were passed: language=en, for instance"
        )
    known: dict[str, str | None] = {}
    texts = [_question(prompt) for prompt in prompts]
    for text in texts:
        if text not in known:
            known[text] = main_language(text, FIRST_GUESS, LEAST)
    return [known[text] for text in texts]


def _question(prompt) -> str:
    """The last message of the user; the whole prompt where it is plain text."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return completion_text([{**asked[-1], "role": "assistant"}]) if asked else ""
