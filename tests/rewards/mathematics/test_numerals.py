import pytest

from ruyi_rl.rewards.mathematics.clock import same_time
from ruyi_rl.rewards.mathematics.numerals import spoken_number


@pytest.mark.parametrize(
    "text, value",
    [
        ("十五", 15), ("一百五", 150), ("一百零五", 105), ("一千五", 1500), ("一万五", 15000), ("负三", -3),
        ("两千零五十", 2050), ("三亿五千万", 350_000_000), ("二〇二五", 2025), ("百分之五十", 0.5), ("八分之三", 0.375),
        ("twelve", 12), ("twenty-five", 25), ("Three hundred five", 305), ("two thousand ten", 2010),
        ("five hundred thousand", 500_000), ("minus seven", -7), ("zero", 0),
        ("百", None), ("五五十", None), ("million", None), ("five five", None), ("twenty ten", None),
        ("one two", None), ("two million three billion", None), ("often", None), ("零分之一", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_in_words(text, value):
    assert spoken_number(text) == value


@pytest.mark.parametrize(
    "gold, answer, verdict",
    [
        ("9:00 AM", "9 AM", True), ("9:00 PM", "21:00", True), ("12:30 PM", "12:30", True), ("12:30 AM", "0:30", True),
        ("9:00 PM", "9:00", False), ("9:05 AM", "21:05", False), ("12:30 PM", "12:30 AM", False),
        ("1:30 PM", "13:60", False), ("12:30", "24:60", None), ("9:00 AM", "9", None), ("3:4", "6:8", None),
    ],
)  # fmt: skip
def test_times(gold, answer, verdict):
    assert same_time(gold, answer) is verdict
