import math

import pytest

from ruyi_rl.training.options import LossWeightOptions
from ruyi_rl.training.schedules import loss_weights

RUYI2 = {"1.7B": 2, "8B": 21, "14B": 39}


def test_presets():
    assert loss_weights(LossWeightOptions(), RUYI2).at(0.7) == {"1.7B": 1, "8B": 1, "14B": 1}
    layerskip = loss_weights(LossWeightOptions(preset="layerskip"), RUYI2).at(0.3)
    assert [round(value, 3) for value in layerskip.values()] == [0.046, 0.338, 0.615]
    ee_llm = loss_weights(LossWeightOptions(preset="ee_llm"), RUYI2)
    assert ee_llm.at(0) == {"1.7B": 0.5, "8B": 0.5, "14B": 1.0}
    assert ee_llm.at(1) == pytest.approx({"1.7B": 0.1, "8B": 0.1, "14B": 1.0})


def test_schedules():
    def at(schedule, progress):
        options = LossWeightOptions(schedule=schedule, start={"8B": 0.8}, end={"8B": 0.2})
        return loss_weights(options, RUYI2).at(progress)["8B"]

    assert at("linear", 0.25) == pytest.approx(0.65)
    assert at("cosine", 0.25) == pytest.approx(0.8 - 0.6 * (1 - math.cos(math.pi / 4)) / 2)
    assert at("constant", 0.9) == 0.8
    for schedule in ("linear", "cosine"):
        assert [at(schedule, p) for p in (-1, 0, 1, 2)] == pytest.approx([0.8, 0.8, 0.2, 0.2])


def test_a_start_alone_stays():
    options = LossWeightOptions(preset="ee_llm", start={"1.7B": 0.3})
    assert loss_weights(options, RUYI2).at(0.5)["1.7B"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "options, message",
    [
        (LossWeightOptions(preset="even"), "uniform, ee_llm, layerskip"),
        (LossWeightOptions(schedule="step"), "constant, linear, cosine"),
        (LossWeightOptions(start={"2B": 1.0}), "2B"),
        (LossWeightOptions(end={"8B": -0.1}), "negative"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        loss_weights(options, RUYI2)
