"""How many of the other completions of the same prompt come to the same last number: no answer needed.

Formula: r = (n - 1) / (N - 1), of the N completions of one prompt at one exit n having this one's last number; 0 where
this one has no number, None where N is 1.
Source: the vote of self-consistency (Wang et al. 2022, https://arxiv.org/abs/2203.11171).

What the function gets, all by keyword, one value a completion in every list:
- `completions`: strings, or lists of chat messages; `completion_text` gives the text of either;
- `prompts`, and `exit`, the name of the exit that answered: together they say which completions are compared;
- the columns of the data that it names; `**kwargs` takes all that it does not name;
- its own options, from `kwargs` in conf/reward/my_reward.yaml: give each a default.

What it returns: a list with one finite number a completion, in their order, or None for "no opinion", which leaves that
completion out of the training. So does an exception, NaN, or taking longer than `timeout`; those are counted, and kept
in reward_failures.jsonl.

It runs in worker processes; `scope: group` in its config has each call hold whole groups, one or several. It keeps
nothing from call to call. `python -m ruyi_rl stage=check_reward reward=my_reward` tries all of this.
"""

import re
from collections import Counter

from ruyi_rl.rewards.completions import completion_text

_NUMBER = re.compile(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?")


def my_reward(completions, prompts, exit=None, **kwargs) -> list[float | None]:
    """One reward a completion, in [0, 1]."""
    exits = exit or [""] * len(completions)
    groups = [(str(prompt), name) for prompt, name in zip(prompts, exits, strict=True)]
    numbers = [_last_number(completion_text(completion)) for completion in completions]
    sizes, votes = Counter(groups), Counter(zip(groups, numbers, strict=True))
    return [_share(sizes[group], votes[group, number], number) for group, number in zip(groups, numbers, strict=True)]


# Helpers begin with an underscore: the file's one public function is the reward.
def _share(size, votes, number):
    if size == 1:
        return None
    return 0.0 if number is None else (votes - 1) / (size - 1)


def _last_number(text):
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
