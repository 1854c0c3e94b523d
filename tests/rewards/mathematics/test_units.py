import time
from fractions import Fraction

import pytest

from ruyi_rl.rewards.mathematics.equality import same_answer
from ruyi_rl.rewards.mathematics.numbers import split_unit
from ruyi_rl.rewards.mathematics.units import conversion, read_unit


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("5", r"5\text{ apples}"), (r"5\text{ apples}", "5"), (r"5\text{ apples}", r"5\text{ green apples}"),
        ("5", r"5\text{ km/h}"), (r"5\text{ m}", r"500\text{ cm}"), ("120 minutes", "2 hours"), ("1 kg", "1000 g"),
        (r"1\text{ L}", r"1000\text{ cm}^3"), (r"36\text{ km/h}", r"10\text{ m/s}"), (r"\$0.50", r"50\text{ cents}"),
        (r"\$18", r"18\text{ dollars}"), ("5元", "50角"), ("¥30", "30元"), (r"3\text{ pounds}", "£3"),
        (r"3\text{ pounds}", r"3\text{ lb}"), ("2千克", "2公斤"), ("5平方米", r"5\text{ m}^2"),
        (r"5\text{ million}", "5,000,000"), ("5000", "5千"), ("60", r"5\text{ dozen}"), ("0.005", "5‰"),
        (r"45^\circ", r"\frac{\pi}{4}"), (r"45^\circ", r"\frac{\pi}{4}\text{ rad}"), (r"30.5^\circ", r"30^\circ 30'"),
        (r"20^\circ\text{C}", r"20\text{ degrees Celsius}"), (r"5\pi", r"5\pi\text{ cm}"), ("5 m", "x=500 cm"),
        (r"10\text{ m/s}^2", r"10\text{ m}\cdot\text{s}^{-2}"), (r"3\text{ ft}", r"36\text{ in}"),
    ],
)  # fmt: skip
def test_same_quantity(gold, answer):
    assert same_answer(gold, answer)


@pytest.mark.parametrize(
    "gold, answer",
    [
        (r"5\text{ million}", r"5\text{ billion}"), ("5", r"5\text{ million}"), ("5", r"5\text{ hundred}"),
        ("5", r"5\text{ dozen}"), (r"5\text{ dozen}", r"5\text{ apples}"), ("5", "5千"), ("5", "5‰"), ("5%", "5‰"),
        ("5", r"5\text{ per thousand}"), (r"\$18", r"18\text{ cents}"), ("5角", "5元"), ("50元", "50角"),
        (r"\$20", "€20"), (r"3\text{ euros}", "£3"), (r"\$3", r"3\text{ rubles}"), ("5克", "5斤"), ("5 km/h", "5 mph"),
        (r"10\text{ m/s}^2", r"10\text{ m/s}"), (r"10\text{ m}", r"10\text{ m}^2"), ("5 km", "5 km/h"),
        (r"5\text{ kg/m}^3", r"5\text{ g/cm}^3"), (r"5\text{ W}", r"5\text{ kW}"), (r"5\text{ J}", r"5\text{ N}"),
        (r"20^\circ F", r"20^\circ C"), (r"100^\circ C", r"100\text{ K}"), (r"45^\circ", r"45\text{ radians}"),
        (r"30^\circ", "30'"), (r"45^\circ", r"\frac{\pi}{3}"), (r"5\text{ m}", r"501\text{ cm}"),
        (r"5\pi\text{ cm}", r"5\pi\text{ m}"), (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ m}"),
        (r"5\text{ apples}", r"5\text{ pears}"), ("5 m", r"5\%"), (r"3\text{ in}", r"3\text{ ft}"),
        (r"5\text{ m}", r"(400+100)\text{ cm}"), ("x=5 m", "y=500 cm"), (r"30.5^\circ", r"30^\circ 50'"),
        (r"3\text{ cm}, 4\text{ cm}", r"3\text{ m}, 4\text{ cm}"),
    ],
)  # fmt: skip
def test_another_quantity(gold, answer):
    assert not same_answer(gold, answer)


def test_units_compose():
    assert conversion(read_unit(r"\text{ m/s}"), read_unit("kilometers per hour")) == Fraction(5, 18)
    assert conversion(read_unit("mL"), read_unit("cubic centimeters")) == 1
    assert conversion(read_unit("N m"), read_unit("kJ")) == 1000
    assert conversion(read_unit("m^2"), read_unit("平方厘米")) == Fraction(1, 10**4)
    assert conversion(read_unit("minutes"), read_unit("m")) is None
    assert read_unit("") == () == read_unit("units")


@pytest.mark.parametrize("tail", ["ab " * 900, "a" * 2500, "km " * 900, "km/" * 900, "一 " * 900, r"\text{a}" * 400])
def test_long_tails_are_read_in_polynomial_time(tail):
    """Read word by word in two ways, they would never end: the bound is far above what a busy machine takes."""
    start = time.process_time()
    assert split_unit(f"5 {tail}!", tight=True)[1] == ""
    assert time.process_time() - start < 20
