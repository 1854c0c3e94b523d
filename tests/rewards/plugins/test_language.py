import pytest

from ruyi_rl.rewards.languages import languages, main_language
from ruyi_rl.rewards.loading import load_function, start_hook
from ruyi_rl.rewards.words import words

language = load_function("rewards/language.py")
start = start_hook("rewards/language.py")

SENTENCES = {
    "en": "First we add the two numbers and then we divide the result by three.",
    "de": "Zuerst addieren wir die beiden Zahlen und teilen dann das Ergebnis durch drei.",
    "fr": "On additionne d'abord les deux nombres, puis on divise le résultat par trois.",
    "es": "Primero sumamos los dos números y luego dividimos el resultado entre tres.",
    "it": "Prima sommiamo i due numeri e poi dividiamo il risultato per tre.",
    "pt": "Primeiro somamos os dois números e depois dividimos o resultado por três.",
    "pl": "Najpierw dodajemy obie liczby, a potem dzielimy wynik przez trzy.",
    "vi": "Trước hết ta cộng hai số, rồi chia kết quả cho ba.",
    "ru": "Сначала мы сложим два числа, а затем разделим результат на три.",
    "uk": "Спочатку ми додамо два числа, а потім поділимо результат на три.",
    "ar": "نجمع العددين أولا ثم نقسم الناتج على ثلاثة.",
    "fa": "ابتدا دو عدد را با هم جمع می‌کنیم و سپس نتیجه را بر سه تقسیم می‌کنیم.",
    "hi": "पहले हम दोनों संख्याओं को जोड़ते हैं और फिर परिणाम को तीन से भाग देते हैं।",
    "zh": "我们先把两个数相加，再把结果除以三。",
    "ja": "まず二つの数を足して、その結果を三で割ります。",
    "ko": "먼저 두 수를 더한 다음 그 결과를 셋으로 나눕니다.",
    "th": "ก่อนอื่นเราบวกสองจำนวนแล้วหารด้วยสาม",
    "el": "Πρώτα προσθέτουμε τους δύο αριθμούς και μετά διαιρούμε με το τρία.",
}
BY_SCRIPT = ("zh", "ja", "ko", "th", "el")


@pytest.mark.parametrize("code", BY_SCRIPT)
def test_scripts_of_one_language_need_no_library(code, monkeypatch):
    monkeypatch.setattr("ruyi_rl.rewards.languages._identifier", lambda: pytest.fail("the library was asked"))
    assert main_language(SENTENCES[code]) == code
    assert language(completions=[SENTENCES[code]] * 2, prompts=["怎么算？", SENTENCES[code]]) == [code == "zh", 1]


def test_every_language_against_every_other():
    expected = {(code, asked): float(code == asked) for code in SENTENCES for asked in SENTENCES}
    found = {pair: language(completions=[SENTENCES[pair[0]]], language=pair[1])[0] for pair in expected}
    assert found == expected


def test_share_of_a_mixed_text_is_that_of_its_words():
    for one, other in [
        ("zh", "en"),
        ("de", "fr"),
        ("ja", "zh"),
        ("ru", "en"),
        ("ru", "uk"),
        ("en", "es"),
        ("ko", "ar"),
    ]:
        text = "\n".join([SENTENCES[one]] * 3 + [SENTENCES[other]])
        mine, theirs = 3 * languages(SENTENCES[one])[one], languages(SENTENCES[other])[other]
        assert language(completions=[text], language=one)[0] == pytest.approx(mine / (mine + theirs), abs=0.02)


def test_what_is_no_prose_changes_nothing():
    noise = [
        "```python\nfor row in rows:\n    print(row, 'the answer of all questions')\n```",
        "`the inline code of it`",
        r"$x = \text{the number of apples}$",
        r"\[ \sum_{n} \text{all of the apples} \]",
        r"\(\gcd(a, b)\)",
        "[asy] draw label dot label draw label dot [/asy]",
        r"\begin{cases} x & \text{where it is not so} \end{cases}",
        r"so \boxed{twelve apples in the end}"[3:],
        "https://example.com/the/path/of/the/page",
        "<think>",
        "</answer>",
        "<|im_end|>",
        "x 12 3.5 % n",
    ]
    for code in ("zh", "de", "ru"):
        for piece in noise:
            assert languages(f"{SENTENCES[code]} {piece}\n{SENTENCES[code]}", code).keys() == {code}, piece


def test_thinking_can_be_left_out():
    text = f"<think>{SENTENCES['en']}</think>{SENTENCES['zh']}"
    assert 0 < language(completions=[text], language="zh")[0] < 1
    assert language(completions=[text], language="zh", thinking=False) == [1]


def test_language_of_the_prompt():
    chat = [
        {"role": "system", "content": SENTENCES["en"]},
        {"role": "user", "content": SENTENCES["zh"]},
        {"role": "assistant", "content": SENTENCES["en"]},
        {"role": "user", "content": SENTENCES["de"]},
    ]
    answers = [SENTENCES["de"], [{"role": "assistant", "content": SENTENCES["zh"]}]]
    assert language(completions=answers, prompts=[chat, chat]) == [1, 0]
    assert language(completions=answers, prompts=[SENTENCES["zh"]] * 2) == [0, 1]
    assert language(completions=answers, language=["de-DE", "zh_Hans"]) == [1, 1]


def test_a_prompt_of_too_few_words_is_no_opinion():
    answers = [SENTENCES["en"]] * 4
    prompts = ["Calculate $2 + 3$.", "Calcula: $2 + 3$", "计算 $2 + 3$", "What is the value of $2 + 3$?"]
    assert language(completions=answers, prompts=prompts) == [None, None, 0, 1]


def test_nothing_to_compare():
    assert language(completions=["", "42", r"\boxed{7}"], language="zh") == [0, 0, 0]
    assert language(completions=["你好"], prompts=["$1 + 1$ = ?"]) == [None]
    assert language(completions=["你好"], prompts=[[{"role": "system", "content": "你好"}]]) == [None]
    with pytest.raises(ValueError, match="no prompts"):
        language(completions=["a"])


def test_japanese_headings_and_chinese_quotes():
    japanese = f"解答\n\n{SENTENCES['ja']}\n\n答：十二個"
    chinese = f"{SENTENCES['zh']}日语的“猫”写作“ねこ”，这是一个很常见的词。"
    assert languages(japanese).keys() == {"ja"}
    assert languages(chinese) == {"zh": len(words(chinese)) - 2, "ja": 2}


def test_impossible_options_are_refused():
    for unknown in ("english", "xx", "", 3):
        with pytest.raises(ValueError, match="unknown language"):
            start(language=unknown)
        with pytest.raises(ValueError, match="unknown language"):
            language(completions=["a"], language=[unknown])
    with pytest.raises(ValueError, match="thinking is true or false"):
        start(thinking="no")
    start(language="eo")
    start()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("don't stop, it’s 3.5 o'clock", ["don't", "stop", "it’s", "3", "5", "o'clock"]),
        ("我有2个apple。", ["我", "有", "2", "个", "apple"]),
        ("ที่", ["ที่"]),
        ("naïve café हिन्दी", ["naïve", "café", "हिन्दी"]),
        ("snake_case 'quoted' -- ...", ["snake", "case", "quoted"]),
        ("カタカナ語ー", list("カタカナ語ー")),
        ("\x00\ud800 𠀀", ["𠀀"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
