"""What every shipped plugin and every shipped `reward` choice must keep."""

import asyncio
import inspect
import math

import pytest
from omegaconf import OmegaConf

from ruyi_rl.cli.compose import ConfigSource
from ruyi_rl.rewards import load_reward
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.loading import load_function, start_hook
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.paths import shipped_plugins
from ruyi_rl.rewards.results import RewardError
from ruyi_rl.rewards.scoring import RewardScorer

LARGE = 50_000
ABSURD = {
    "empty": "",
    "NUL": "\0" * 50,
    "lone surrogates": "\ud800 \udfff" * 50,
    "many letters": "a" * LARGE,
    "many spaces": " " * LARGE,
    "many line breaks": "\n" * LARGE,
    "many digits": "9" * LARGE,
    "many Han": "选" * LARGE,
    "many marks": "\u0301" * LARGE,
    "ligatures that grow eighteenfold": "\ufdfa" * 5_000,
    "open brackets": "[{(<" * (LARGE // 4),
    "open boxes": "\\boxed{" * (LARGE // 7),
    "answers": "Answer: A or " * (LARGE // 13),
    "open tags": "<think><answer>" * (LARGE // 15),
    "stars": "*a" * (LARGE // 2),
    "sentences": "A. " * (LARGE // 3),
    "dollars": "$ $ \\[ " * (LARGE // 7),
    "fences": "```\n" * (LARGE // 4),
    "angles": "<<" * (LARGE // 2),
}
ALL_IDS = [
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
    ("detectable_format:json_format", {}),
    ("detectable_format:title", {}),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}),
]
CALLS = {
    "format": [{"mode": mode} for mode in ("pattern", "think", "tags")],
    "length": [{"unit": unit, "limit": 9, "cache": 3} for unit in ("words", "characters", "tokens")]
    + [{"mode": "kimi", "unit": "words", "correct": True}, {"mode": "cosine", "limit": 9, "correct": False}],
    "repetition": [{"unit": unit} for unit in ("words", "characters", "tokens")],
    "multiple_choice": [{}, {"choices": ["x", "Paris"]}],
    "language": [{"language": "zh"}, {"language": "de"}],
    "instruction_following": [{"loose": loose} for loose in (False, True)],
    "judge": [{"url": "http://127.0.0.1:9/v1", "model": "m", "answer_characters": 0, "template": "{first}{second}"}],
}


def call(name, completions, **options):
    count = len(completions)
    ids, arguments = map(list, zip(*ALL_IDS, strict=True))
    columns = {
        "prompts": ["p"] * count,
        "completion_ids": [[1, 2, 3]] * count,
        "answer": ["A"] * count,
        "instruction_id_list": [ids] * count,
        "kwargs": [arguments] * count,
    }
    if "choices" in options:
        options = options | {"choices": [options["choices"]] * count}
    rewards = load_function(f"rewards/{name}.py")(completions=completions, **columns | options)
    return asyncio.run(rewards) if inspect.isawaitable(rewards) else rewards


@pytest.mark.parametrize("name, options", [(name, options) for name in CALLS for options in CALLS[name]])
def test_absurd_completions_give_numbers_and_leave_others_alone(name, options):
    plain = ["The answer is B.", "<think>a</think><answer>5</answer>"]
    chats = [[{"role": "assistant", "content": text}] for text in ABSURD.values()][:3]
    # What a group is compared with is not "others": the comparison itself has its own tests.
    expected = None if options.get("mode") == "kimi" else call(name, plain, **options)
    rewards = call(name, [*plain, *ABSURD.values(), *chats, [], plain[0]], **options)
    assert all(reward is None or math.isfinite(reward) for reward in rewards)
    assert rewards[2:5] == rewards[2 + len(ABSURD) : 5 + len(ABSURD)]
    assert expected is None or (rewards[:2] == expected and rewards[-1] == expected[0])


@pytest.mark.parametrize("path", shipped_plugins())
def test_shipped_plugin_names_its_formula_and_source(path):
    documentation = inspect.getmodule(load_function(path)).__doc__
    assert "Formula" in documentation and "https://" in documentation
    assert load_function(path).__name__ == path.removeprefix("rewards/").removesuffix(".py")


@pytest.mark.parametrize("choice", ConfigSource().choices()["reward"])
def test_shipped_choices_are_possible(choice):
    group = OmegaConf.merge(RewardOptions, OmegaConf.load(ConfigSource().file("reward", choice)))
    whole = OmegaConf.create({"reward": group, "grpo": {"trainer": {"max_completion_length": 1024}}})
    options = OmegaConf.to_object(whole.reward)
    check_reward(options)
    for name, function in options.functions.items():
        # The judge's start asks its endpoint, that of code its sandbox: their own tests have one.
        hook = start_hook(function.path)
        if hook and name not in ("judge", "code_tests"):
            hook(**function.kwargs, **({"scope": function.scope} if name == "length" else {}))


def test_kimi_is_refused_where_groups_are_cut():
    with pytest.raises(RewardError, match="needs scope: group"), load_reward("rewards/length.py", mode="kimi"):
        pass
    with load_reward("rewards/length.py", scope="batch", mode="kimi", unit="words", correct=True) as reward:
        assert reward(completions=["a", "a b", "a b c"], prompts=["p"] * 3) == [0.5, 0.0, -0.5]


def test_groups_of_kimi_are_whole_in_the_workers():
    """Many groups in one batch, scored by worker processes that get parts of it."""
    options = RewardFunctionOptions(
        "rewards/length.py", scope="group", workers=2, kwargs={"mode": "kimi", "unit": "words", "correct": True}
    )
    rows = [(f"p{number % 20}", number) for number in range(80)]
    with RewardScorer(RewardOptions(functions={"length": options})) as scorer:
        completions = ["w " * (number // 20) for _, number in rows]
        prompts = [prompt for prompt, _ in rows]
        scored = scorer.score(completions, {"prompts": prompts}, groups=prompts)
    expected = [0.5 - (number // 20) / 3 for _, number in rows]
    assert [row[0] for row in scored.rewards] == pytest.approx(expected)
    assert not scored.failures
