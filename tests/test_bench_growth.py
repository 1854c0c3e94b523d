import json
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench_growth

TINY = ["--threads", "1", "--rounds", "1", "--hidden", "32", "--samples", "2", "3", "--completion", "3", "4"]
TINY += ["--exits", "2", "1", "--vocabulary", "1024", "512"]


SHALLOW = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setattr(bench_growth, "EXITS", SHALLOW)


def options(*more):
    parser = ArgumentParser()
    bench_growth.add_arguments(parser)
    return parser.parse_args([*TINY, *more])


def curves_of(found):
    return {(curve["sweep"], curve["name"]): curve for curve in found["curves"]}


@pytest.mark.parametrize(("power", "factor"), [(0.0, 5.0), (1.0, 2.0), (1.7, 0.3), (-2.0, 9.0)])
def test_the_exponent_is_a_power_laws(power, factor):
    x = [1, 3, 4, 10, 11]
    assert bench_growth.exponent(x, [factor * value**power for value in x]) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_of_the_larger_half():
    small, large = [7.0, 100.0], [4**3, 8**3, 16**3]
    assert bench_growth.exponent([1, 2, 4, 8, 16], small + large) == pytest.approx(3)
    assert bench_growth.exponent([1, 2, 4], [100.0, 2**0.5, 4**0.5]) == pytest.approx(0.5)
    assert bench_growth.exponent([2, 8], [6.0, 3.0]) == pytest.approx(-0.5)


def test_the_exponent_between_more_than_two_points_is_their_least_squares_slope():
    """Of (0, 0), (1, 0) and (2, 3) in log 2: Σ (x - 1)(y - 1) / Σ (x - 1)² = 3 / 2."""
    assert bench_growth.exponent([1, 2, 4], [1.0, 1.0, 8.0]) == pytest.approx(3)  # the larger half: the last two
    assert bench_growth.exponent([0.1, 0.2, 1, 2, 4], [9.0, 9.0, 1.0, 1.0, 8.0]) == pytest.approx(1.5)


def test_every_size_is_measured_and_drawn(shallow, monkeypatch, tmp_path, capsys):
    """But for the processes of memory, which the slow test starts."""
    asked = []

    def memory_of(points, arguments):
        asked.extend(points)
        # MiB in all, without gradients, gradients
        return [(30.0 * n, 10.0 * n, 20.0) for n in range(1, len(asked) + 1)]

    monkeypatch.setattr(bench_growth, "memory_of", memory_of)
    figure = tmp_path / "growth.png"
    found = bench_growth.growth(options("--figure", str(figure)))
    curves = curves_of(json.loads(json.dumps(found)))
    assert curves.keys() == {
        (sweep, name)
        for sweep in ("samples", "completion", "exits", "vocabulary")
        for name in ("packed", "padded", "TRL", "activations", "gradients")
    }
    assert curves["exits", "packed"]["x"] == [3, 3 + 1]  # layers of the branches, own ones included
    assert curves["vocabulary", "TRL"]["labels"] == ["512", "1024"]
    for curve in curves.values():
        if curve["unit"] == "s":
            assert all(low > 0 and low <= value <= high for value, (low, high) in zip(curve["values"], curve["ranges"]))
            assert curve["expected"] > 0
        assert curve["exponent"] == bench_growth.exponent(curve["x"], curve["values"])
    # In the order in which the sizes were measured.
    assert [len(asked), *curves["vocabulary", "activations"]["values"]] == [8, 70.0, 80.0]
    assert curves["samples", "gradients"]["exponent"] == 0
    assert figure.read_bytes().startswith(b"\x89PNG") and 30_000 < figure.stat().st_size < 300_000
    printed = capsys.readouterr().out
    assert all(f"{sweep:12} {name:12}" in printed for sweep, name in curves)


def test_sharing_a_prompt_is_what_token_layers_count():
    [few, many] = bench_growth.sweeps_of(options())["samples"]
    # A prompt of 64 tokens through 12 trunk layers and 3 own; completions of 64 tokens, but for the last, through 22.
    assert (few.token_layers, many.token_layers) == (64 * 15 + 2 * 63 * 22, 64 * 15 + 3 * 63 * 22)


@pytest.mark.parametrize("sizes", [["--samples", "4"], ["--samples", "1", "4"], ["--vocabulary", "256", "1024"]])
def test_sizes_that_give_no_curve_are_refused(sizes):
    with pytest.raises(SystemExit, match=f"{sizes[0]}: at least two sizes, each at least"):
        bench_growth.growth(options(*sizes))


def test_different_results_are_not_timed(shallow, monkeypatch):
    import bench_grpo

    plain = bench_grpo.theirs

    def changed(branch, *rest):
        branch.model.norm.weight.data.mul_(1.01)
        return plain(branch, *rest)

    monkeypatch.setattr(bench_grpo, "theirs", changed)
    arguments = options("--dtype", "float32")
    with pytest.raises(SystemExit, match="log-probs differ"):
        bench_growth.seconds_of(bench_growth.sweeps_of(arguments)["samples"][0], arguments)


@pytest.mark.slow
def test_memory_without_gradients_does_not_know_the_vocabulary_beyond_a_tile():
    """In processes of their own. Weights of 64 columns: 4 times 98,304 x 64 floats more are 96 MiB of gradients."""
    arguments = options("--hidden", "64", "--dtype", "float32", "--vocabulary", "32768", "131072")
    few, many = bench_growth.memory_of(bench_growth.sweeps_of(arguments)["vocabulary"], arguments)
    assert many[2] - few[2] == pytest.approx(96)
    assert many[1] == pytest.approx(few[1], rel=0.1)
    assert few[1] < few[0] <= few[1] + few[2] and many[1] < many[0] <= many[1] + many[2]
