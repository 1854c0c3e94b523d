"""IFEval's checks. The cases were compared with the published implementation, which needs downloads to run."""

import json

import pytest

from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.data.rows import load_splits
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.instructions import INSTRUCTIONS, followed, sentences
from ruyi_rl.rewards.loading import load_function, start_hook

reward = load_function("rewards/instruction_following.py")
start = start_hook("rewards/instruction_following.py")

CASES = [
    ("keywords:existence", {"keywords": ["cat", "C++"]}, ["Cats like c++."], ["cat C+"]),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, ["Cat, cats"], ["cat"]),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, ["cat"], ["cat cat"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "猫", "C++"]},
        ["concatenate C"],
        ["A CAT!", "小猫咪", "c++"],
    ),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, ["Eel e"], ["eel"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, ["A b. C d!"], ["A 3.5 b."]),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["a b", "两字"],
        ["a b c", "三个字"],
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a***b"], ["a\n\nb", "a****** b"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["a\n\nWeekend, b", 'a\n\n"weekend" b'],
        ["a\n\nb weekend", "weekend", "a\n\nweekend\n\nb"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]"], ["[a [b]", "[a\n] [b]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. y"], ["PS y"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S y", "p. p. s"], ["P.S. y"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n  - b"],
        ["* a", "* a\n* b\n- c", "**a**\n- b"],
    ),
    ("detectable_format:constrained_response", {}, ["Well: My answer is no."], ["My answer is perhaps."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* **b**"], ["*a* * *", "**a* b"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 Section2"],
        ["Section"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", "9" * 9999],
        ["{a: 1}", "[" * 99999, "so: {}"],
    ),
    ("detectable_format:title", {}, ["x\n<<t>> y"], ["<< >>", "<<a\nb>>", "<a>", "<<a"]),
    ("combination:two_responses", {}, ["a ****** b"], ["a****** a", "a******b******c", "a"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, [" say HI. Hi!"], ["Hi! Say hi."]),
    ("startend:end_checker", {"end_phrase": "Any more?"}, ['x any more?"\n'], ["Any more? No."]),
    ("startend:quotation", {}, ['"a"\n'], ['"a', '"', "“a”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I AM"],
        ["I am"],
    ),
    ("punctuation:no_comma", {}, ["a. b"], ["a, b", "甲，乙"]),
    ("language:response_language", {"language": "zh"}, ["我们先把两个数相加。", "42"], ["The answer is not far away."]),
    (
        "change_case:english_capital",
        {},
        ["THE ANSWER IS NOT FAR AWAY."],
        ["The ANSWER", "DIE ANTWORT LIEGT SEHR NAHE BEI UNS."],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the answer is not far away."],
        ["The answer", "die antwort liegt sehr nahe bei uns."],
    ),
]


@pytest.mark.parametrize("name, given, good, bad", CASES)
def test_each_instruction(name, given, good, bad):
    # The published rows carry every argument of every instruction, None where it does not belong.
    given = given | {"unused": None}
    assert [followed([name], [given], text) for text in good] == [[True]] * len(good)
    assert [followed([name], [given], text) for text in [*bad, "", " \n"]] == [[False]] * (len(bad) + 2)


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


def test_loose_forgives_a_first_or_last_line_and_asterisks():
    name, given = "startend:quotation", {}
    for text in ['Sure:\n"a"', '"a"\nHope it helps', 'Sure:\n"a"\nBye', '**"a"**', 'Sure:\n*"a"*\nBye']:
        assert followed([name], [given], text) == [False]
        assert followed([name], [given], text, loose=True) == [True]
    assert followed([name], [given], "a", loose=True) == [False]


def test_sentences():
    text = 'Dr. J. Smith paid 3.50 dollars... He left! "Did he?" She asked (twice.) 他走了。真的吗？是。 Done'
    parts = ["Dr. J. Smith paid 3.50 dollars...", "He left!", '"Did he?"', "She asked (twice.)"]
    assert sentences(text) == [*parts, "他走了。", "真的吗？", "是。", "Done"]


def rows(*texts, **options):
    ids = ["punctuation:no_comma", "startend:quotation", "keywords:existence"]
    arguments = [{}, {"keywords": None}, {"keywords": ["cat"]}]
    columns = {"instruction_id_list": [ids] * len(texts), "kwargs": [arguments] * len(texts)}
    return reward(completions=list(texts), prompts=["p"] * len(texts), **columns | options)


def test_share_and_all_or_nothing():
    texts = ['"cat"', "cat", "cat,", "a,", ""]
    assert rows(*texts) == [1, 2 / 3, 1 / 3, 0, 0]
    assert rows(*texts, whole=True) == [1, 0, 0, 0, 0]
    assert rows('Sure, here:\n"cat"', loose=True) == [1]


def test_thinking_is_removed_first():
    chat = [{"role": "assistant", "content": '<think>Hm, well.</think>\n"cat"'}]
    assert rows(chat, '<think>"cat"') == [1, 0]


def test_arguments_under_either_name_and_as_json():
    arguments = [{}, {}, {"keywords": ["cat"]}]
    for given in (arguments, json.dumps(arguments)):
        assert rows("cat", kwargs=None, instruction_kwargs=[given]) == [2 / 3]
    with pytest.raises(ValueError, match="`instruction_kwargs` nor `kwargs`"):
        reward(completions=["a"], instruction_id_list=[[]])


def test_rows_without_instructions_abstain():
    assert rows("a", "b", instruction_id_list=[[], None], kwargs=[[], None]) == [None, None]


@pytest.mark.parametrize(
    "ids, arguments, message",
    [
        (["punctuation:no_commas"], [{}], "unknown instruction 'punctuation:no_commas': did you mean"),
        (["keywords:existence"], [{}], "keywords:existence with {}.*keywords"),
        (["keywords:existence"], [{"keyword": "a"}], "keywords:existence with.*'keyword'"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "around"}], "unknown relation 'around'"),
        (["language:response_language"], [{"language": "klingon"}], "unknown language"),
        (["punctuation:no_comma"], [], "1 instructions with 0"),
    ],
)
def test_rows_that_cannot_be_checked_are_named(ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        reward(completions=["a"], instruction_id_list=[ids], kwargs=[arguments])


def test_impossible_options_are_refused():
    for options in ({"loose": "yes"}, {"whole": 1}):
        with pytest.raises(ValueError, match="is true or false"):
            start(**options)


def test_published_rows_reach_the_reward_by_the_shipped_data_choice(tmp_path):
    everything = {"keywords": None, "num_words": None, "relation": None}
    published = [
        {
            "key": 1000 + number,
            "prompt": f"Write about {word}.",
            "instruction_id_list": ["keywords:existence", "length_constraints:number_words"],
            "kwargs": [everything | {"keywords": [word]}, everything | {"num_words": 4, "relation": "less than"}],
        }
        for number, word in enumerate(["cats", "dogs", "cows", "hens"])
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in published))
    source = ConfigSource()
    overrides = ["data=ifeval", f"data.path={file}", "data.holdout=1", "reward=instruction_following", "stage=grpo"]
    config = to_run_config(compose_config(overrides, source))
    needs = check_reward(config.reward)["instruction_following"]
    rows = load_splits(config.data, 1, "grpo", needs).train
    columns = {name: rows[name] for name in rows.column_names if name != "prompt"}
    assert set(columns) == {"key", "instruction_id_list", "instruction_kwargs"}
    texts = [f"I like {row[0]['keywords'][0]}." for row in columns["instruction_kwargs"]]
    assert reward(completions=texts, **columns) == [1, 1, 1]
    assert reward(completions=["I like no animals."] * 3, **columns) == [0, 0, 0]
