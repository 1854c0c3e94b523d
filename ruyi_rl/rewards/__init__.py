"""Rewards: plugins that score completions. Importing this package imports no torch.

How to write one. Make a file with one public function, named as you like:

    # my_rewards/short.py
    \"\"\"1.0 for a right-sized completion. Formula: r = max(0, 1 - words / limit).\"\"\"

    from ruyi_rl.rewards.completions import completion_text

    def short(completions, limit=50, **kwargs):
        return [max(0.0, 1 - len(completion_text(completion).split()) / limit) for completion in completions]

and name it in a config group file, `conf/reward/short.yaml`, or on the command line:

    functions:
      short: {path: my_rewards/short.py, weight: 0.5, kwargs: {limit: 30}}

    python -m ruyi_rl stage=grpo '+reward.functions.short={path: my_rewards/short.py, weight: 0.5}'

What the function gets, all by keyword, one value a completion in every list:
- `completions`: strings, or lists of chat messages where the prompts are chats (`completion_text` reads both);
- `prompts`, `completion_ids`: the prompts and the completions' token ids;
- every column of the data under its name, such as `answer`: name those you need as parameters;
- `trainer_state`, `log_extra(column, values)`, `log_metric(name, value)`, from the trainer only: give them a default;
- your `kwargs` from the config. `**kwargs` at the end takes what you do not name.

What it returns: a list of one finite number a completion, or None for "no opinion": that completion is left out of the
baseline and gets advantage 0, which a 0.0 does not. NaN, infinity and anything that is no number count as None and are
counted; a list of another length, or an exception, stops the run with the file and the line. It may be `async def`.

Helper functions in the file start with an underscore. A file with several public functions is named with the one that
is meant: `my_rewards/all.py:short`. Functions of installed packages go by their dotted name, such as
`trl.rewards.think_format_reward`.

To try it before a run:

    from ruyi_rl.rewards import load_reward
    with load_reward("my_rewards/short.py", timeout=10, limit=30) as reward:
        print(reward(completions=["a b c", "d"]))
"""

from ruyi_rl.rewards.worker import load_reward

__all__ = ["load_reward"]
