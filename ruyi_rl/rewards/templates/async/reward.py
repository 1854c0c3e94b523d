"""1.0 for a completion whose last number is the row's answer, 0.0 for any other; waits for something outside.

Formula: r = 1 if |last number of the completion - answer| <= tolerance, else 0; None where the answer has no number.
Source: write down where yours comes from.

What the function gets, all by keyword, one value a completion in every list:
- `completions`: strings, or lists of chat messages; `completion_text` gives the text of either;
- the columns of the data that it names, such as `answer`, and `prompts`; `**kwargs` takes all that it does not name;
- its own options, from `kwargs` in conf/reward/my_reward.yaml, such as `tolerance`: give each a default.

What it returns: a list with one finite number a completion, in their order, or None for "no opinion", which leaves that
completion out of the training. So does an exception, NaN, or taking longer than `timeout`; those are counted, and kept
in reward_failures.jsonl.

It runs in worker processes that get any part of a batch. So it scores each completion by itself, and keeps nothing from
call to call. `python -m ruyi_rl stage=check_reward reward=my_reward` tries all of this.
"""

import asyncio
import re

from ruyi_rl.rewards.completions import completion_text

_NUMBER = re.compile(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?")


async def my_reward(completions, answer, tolerance=0.0, at_once=16, **kwargs) -> list[float | None]:
    """One reward a completion; `answer`: the right answers, `tolerance`: how far off still counts as right,
    `at_once`: how many completions wait for their scores at the same time."""
    places = asyncio.Semaphore(at_once)
    texts = [completion_text(completion) for completion in completions]
    scores = [_score(places, text, gold, tolerance) for text, gold in zip(texts, answer, strict=True)]
    return list(await asyncio.gather(*scores))


# Helpers begin with an underscore: the file's one public function is the reward.
async def _score(places, text, gold, tolerance):
    async with places:
        # Here comes what you wait for: a request to a server of yours, for instance by httpx.AsyncClient.
        await asyncio.sleep(0)
    given, right = _last_number(text), _last_number(str(gold))
    if right is None:
        return None
    return float(given is not None and abs(given - right) <= tolerance)


def _last_number(text):
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
