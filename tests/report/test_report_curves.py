"""The report's curves against what numpy makes of the same numbers."""

import math
import random

import numpy as np
import pytest

from ruyi_rl.report.html.line_chart import LINE_HEIGHT, Line, line_chart, shortened, spread
from ruyi_rl.report.html.scales import percentage, plain, span, ticks
from ruyi_rl.report.html.series import columns, extremes, last_of_each, running_mean


@pytest.mark.parametrize("count", [1, 2, 19, 20, 777])
def test_the_running_mean_is_numpys(count):
    values = [random.uniform(-1e6, 1e6) for _ in range(count)]
    width = max(1, round(0.05 * count))
    expected = [np.mean(values[max(0, end - width) : end]) for end in range(1, count + 1)]
    np.testing.assert_allclose(running_mean(values), expected, rtol=1e-9, atol=1e-6)


def test_a_thinned_curve_keeps_every_peak_and_stays_in_order():
    steps = list(range(1, 5001))
    values = [random.random() for _ in steps]
    values[1234], values[4321] = 17.0, -5.0
    points = extremes(steps, values)
    assert len(points) <= 300 and points == sorted(points)
    assert (1235, 17.0) in points and (4322, -5.0) in points
    assert set(points) <= set(zip(steps, values))
    smooth = last_of_each(steps, values)
    assert smooth[0] == (1, values[0]) and smooth[-1] == (5000, values[-1]) and len(smooth) <= 151
    assert extremes(steps[:40], values[:40]) == last_of_each(steps[:40], values[:40]) == list(zip(steps, values))[:40]


def test_a_later_phase_goes_on_and_what_is_not_finite_is_counted():
    rows = [
        {"phase": 1, "step": 1, "a": 1.0, "b": math.nan},
        {"phase": 1, "step": 2, "a": 2, "text": "x", "flag": True},
    ]
    rows += [{"phase": 2, "step": 1, "a": 3.0, "b": math.inf}, {"phase": 2, "step": 2, "b": None}]
    found = columns(rows)
    assert found["a"].steps == [1, 2, 3] and found["a"].values == [1.0, 2.0, 3.0]
    assert found["b"].values == [] and found["b"].left_out == 2
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize("values", [[1e308, -1e308], [10**400, 1.0], [9e299, -9e299], [5e-324], [5e-324, 1e-320]])
def test_metrics_beyond_all_bounds_are_left_out_or_drawn(values):
    found = columns([{"phase": 1, "step": step, "a": value} for step, value in enumerate(values)])["a"]
    assert found.left_out == sum(abs(value) >= 1e300 for value in values)
    low, high = span(found.values)
    assert low < high and math.isfinite(high - low) and 2 <= len(ticks(low, high)) <= 6
    assert all(map(math.isfinite, running_mean(found.values)))


@pytest.mark.parametrize("low, high", [(0, 1), (-0.013, 0.0271), (1e-7, 3e-7), (12345, 67890), (0.5, 0.500001)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    mantissa = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - each) for each in (1, 2, 2.5, 5, 10)) < 1e-6


def test_an_axis_holds_its_values_and_keeps_shares_between_0_and_1():
    assert span([]) == (0.0, 1.0)
    for values in ([3.0], [0.0], [-2.0, -2.0]):
        low, high = span(values)
        assert low < min(values) <= max(values) < high
    assert span([0.0, 0.4], (0.0, 1.0))[0] == 0.0 and span([0.9, 1.0], (0.0, 1.0))[1] == 1.0
    low, high = span([0.5, 1.2], (0.0, 1.0))  # what lies outside is shown all the same
    assert low < 0.5 and high > 1.2


def test_numbers_are_short():
    assert [plain(value) for value in (0, 0.125, 12.5, 4200, 1e-6, 12345, -3)] == [
        *("0", "0.125", "12.5", "4200", "1e-06", "12.3k", "-3"),
    ]
    assert percentage(0.4125) == "41.2 %" and percentage(1) == "100 %" and percentage(-0.0) == "0 %"


def test_names_at_the_lines_ends_never_overlap():
    wanted = [100.0, 100.0, 101.0, 20.0, 199.0, 200.0]
    places = spread(wanted, LINE_HEIGHT, 10, 200)
    assert min(np.diff(sorted(places))) >= LINE_HEIGHT - 1e-9
    assert all(10 <= place <= 200 for place in places) and places[3] == 20.0
    assert sorted(range(6), key=places.__getitem__) == sorted(range(6), key=wanted.__getitem__)


def test_points_stand_where_the_scales_say():
    chart = line_chart("t", [Line("a", 0, [(0, 1.0), (10, 3.0)], errors=[0.5, None])], "step")
    first, last = (tuple(map(float, point.split(","))) for point in chart.lines[0].strong.split())
    assert first == pytest.approx((chart.x(0), chart.y(1.0)), abs=0.06)
    assert last == pytest.approx((chart.x(10), chart.y(3.0)), abs=0.06) and last[1] < first[1]
    assert chart.lines[0].bars == [(pytest.approx(chart.x(0), abs=0.06), *(round(chart.y(v), 1) for v in (0.5, 1.5)))]
    assert all(chart.y.end <= tick.place <= chart.y.start for tick in chart.up)
    single = line_chart("t", [Line("a", 0, [(5, 2.0)])], "step")
    assert single.lines[0].dots and [tick.text for tick in single.across] == ["5"]
    assert line_chart("t", [], "step").lines == []


def test_long_names_keep_their_ends():
    assert shortened("medium") == "medium"
    assert shortened("an exit of 1.7B") != shortened("an exit of 14.B") and len(shortened("an exit of 1.7B")) == 11
