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
- `log_extra(column, values)` (one value a completion, for the table of completions) and `log_metric(name, value)`, from
  the trainer also `trainer_state` (its fields): give them a default. A column `<name>/answer` with the answer that was
  read from each completion ("": none) lets `stage=eval` count the votes of maj@k;
- your `kwargs` from the config. `**kwargs` at the end takes what you do not name.

What it returns: a list of one finite number a completion, or None for "no opinion": that completion is left out of the
baseline and gets advantage 0, which a 0.0 does not. It may be `async def`; the completions of one call then wait
together, as far as the function lets them.

How it is called. In worker processes that are used again and again, with parts of a batch, in any order, and again with
smaller parts where a part has failed. So a reward must depend on its own completion and columns only, not on its
neighbours, on what came before or on random numbers. One that compares the completions of a prompt asks for
`scope: group`, one that needs them all for `scope: batch`. What a function changes of its process (variables, the
environment, the random state) stays in that worker; the working folder, the standard streams and the built-in functions
are put back after every call. What it prints is shown up to 4 KB. Each worker has a folder of its own for temporary
files, removed with it; everything that it starts ends with it, by a kill: `atexit` is not run.

What fails, fails for that completion alone: it gets None, is counted by its kind and kept with the sample. The kinds:
an exception, more than `timeout` seconds, more than `memory_gb` (private memory that it reserves; all that it and its
children hold), a crash or `sys.exit`, NaN, infinity, a list of another length, what is no list or no number, an
argument that cannot be pickled.

What must be checked or loaded once, a plugin file does in `_start(**kwargs)`, which gets your `kwargs` and is called in
every worker before the first call. What it raises stops the run before it begins, with the message: a missing program,
an impossible option. It is also the place for slow imports and models. A hook with a parameter `scope` or
`timeout` gets that of the config as well, so that a function that compares completions can refuse `scope: sample`.

Helper functions in the file start with an underscore. A file with several public functions is named with the one that
is meant: `my_rewards/all.py:short`. Functions of installed packages go by their dotted name, such as
`trl.rewards.think_format_reward`.

To try it before a run:

    from ruyi_rl.rewards import load_reward
    with load_reward("my_rewards/short.py", timeout=10, limit=30) as reward:
        print(reward(completions=["a b c", "d"]), reward.failures)
"""

__all__ = ["load_reward"]


def __getattr__(name: str):
    # Late: every worker imports this package, and must not wait for what only a run needs.
    if name == "load_reward":
        from ruyi_rl.rewards.isolated import load_reward

        return load_reward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
