"""How far a completion keeps the form `<think>…</think><answer>…</answer>`.

Formulas:
- `mode="pattern"`: r = 1 if the completion is one thinking block and then one answer block, each tag once and nothing
  but space around them, else 0. Source: DeepSeek-R1 (https://arxiv.org/abs/2501.12948), section 2.2.2.
- `mode="tags"`: r = 0.25 for each of the four tags that stands exactly once. Source: `tag_count_reward` of open-r1
  (https://github.com/huggingface/open-r1).
"""

from ruyi_rl.rewards.completions import completion_text

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(completions, mode="pattern", opened=False, **kwargs) -> list[float]:
    """One reward a completion, in [0, 1]. `opened`: the chat template has already written the first `<think>`."""
    if mode not in ("pattern", "tags"):
        raise ValueError(f"mode is 'pattern' or 'tags', not {mode!r}")
    texts = [("<think>" if opened else "") + completion_text(completion) for completion in completions]
    if mode == "tags":
        return [sum(text.count(tag) == 1 for tag in TAGS) / len(TAGS) for text in texts]
    return [float(_keeps_form(text.strip())) for text in texts]


def _keeps_form(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    opening, closing, answer, end = (text.index(tag) for tag in TAGS)
    between = text[closing + len("</think>") : answer]
    return opening == 0 and closing < answer < end == len(text) - len("</answer>") and not between.strip()
