import pytest

from ruyi_rl.report.curves import curve, draw_curves, running_mean


def rows(phases=(1,), steps=20):
    return [
        {"phase": phase, "step": step, "small/reward": step / 20, "large/reward": 1.0 if step % 2 else None}
        for phase in phases
        for step in range(1, steps + 1)
    ]


def test_the_picture_is_written(tmp_path):
    path = tmp_path / "curves.png"
    assert draw_curves(rows(), ["small", "large"], ["reward", "absent"], path, "x: grpo")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_without_figures_there_is_no_picture(tmp_path):
    assert not draw_curves([], ["small"], ["reward"], tmp_path / "curves.png", "x")
    assert not (tmp_path / "curves.png").exists()


def test_a_second_phase_goes_on_where_the_first_ended():
    steps, values = curve(rows(phases=(1, 2)), "small/reward")
    assert steps == list(range(1, 41)) and values[20] == 1 / 20


def test_logs_without_the_metric_are_left_out():
    assert curve(rows(), "large/reward") == (list(range(1, 21, 2)), [1.0] * 10)


@pytest.mark.parametrize(("share", "expected"), [(0.5, [1.0, 1.5, 2.5, 3.5]), (0.1, [1.0, 2.0, 3.0, 4.0])])
def test_the_running_mean_looks_back_only(share, expected):
    assert running_mean([1.0, 2.0, 3.0, 4.0], share) == expected
