"""How far a completion keeps the asked form.

Formulas:
- `mode="pattern"`: r = 1 if the completion is `<think>…</think><answer>…</answer>`: one thinking block and then one
  answer block, each tag once and nothing but space around them, else 0.
  Source: DeepSeek-R1 (https://arxiv.org/abs/2501.12948), section 2.2.2. (open-r1's `format_reward` also asks for a line
  break on both sides of every text.)
- `mode="think"`: r = 1 if it is `<think>…</think>` and then some text, each tag once, else 0.
  Source: `think_format_reward` of TRL (https://github.com/huggingface/trl), which also takes a missing text and a
  second `</think>`.
- `mode="tags"`: r = 0.25 for each of the four tags that stands exactly once. Source: `tag_count_reward` of open-r1
  (https://github.com/huggingface/open-r1), which also asks for the line breaks.
"""

from ruyi_rl.rewards.completions import completion_text

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(completions, mode="pattern", opened=False, **kwargs) -> list[float]:
    """One reward a completion, in [0, 1]. `opened`: the chat template has already written the first `<think>`."""
    _start(mode, opened)
    texts = [("<think>" if opened else "") + completion_text(completion) for completion in completions]
    if mode == "tags":
        return [sum(text.count(tag) == 1 for tag in TAGS) / len(TAGS) for text in texts]
    return [float((_thinks if mode == "think" else _answers)(text.strip())) for text in texts]


def _start(mode="pattern", opened=False, **kwargs) -> None:
    """Refuse options that are impossible."""
    if mode not in ("pattern", "think", "tags"):
        raise ValueError(f"mode is 'pattern', 'think' or 'tags', not {mode!r}")
    if not isinstance(opened, bool):
        raise ValueError(f"opened is true or false, not {opened!r}")


def _thinks(text: str) -> bool:
    once = all(text.count(tag) == 1 for tag in TAGS[:2])
    return once and text.startswith("<think>") and bool(text.partition("</think>")[2].strip())


def _answers(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    opening, closing, answer, end = (text.index(tag) for tag in TAGS)
    between = text[closing + len("</think>") : answer]
    return opening == 0 and closing < answer < end == len(text) - len("</answer>") and not between.strip()
