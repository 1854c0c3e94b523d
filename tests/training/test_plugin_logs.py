"""What plugins log fits the run's table, and hides nothing of the run's own."""

import pandas
import pyarrow
import pytest

from ruyi_rl.training.plugin_logs import column_name, metric_name, of_one_type


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.3, "no", None], ["0.3", "no", None]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([1, None, 2], [1, None, 2]),
        ([True, 1], ["true", "1"]),
        ([True, None], [True, None]),
        ([[1], {"a": [1]}, None], ["[1]", '{"a": [1]}', None]),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        (["a", None], ["a", None]),
        ([None, None], [None, None]),
        ([], []),
    ],
)
def test_one_type_a_column(values, expected):
    fitted = of_one_type(values)
    assert fitted == expected and [type(value) for value in fitted] == [type(value) for value in expected]
    assert of_one_type(fitted) == fitted
    pyarrow.Table.from_pandas(pandas.DataFrame({"column": of_one_type([*fitted, 1, "x", [2.0], None])}))


def test_the_trainers_own_names_stay_its_own():
    exits = ("small", "large")
    for name in ("loss", "reward", "small/reward", "rewards/it/mean", "clip_ratio/low_mean"):
        assert metric_name(name, exits) == f"logged/{name}"
    for name in ("boxed", "it/length", "smaller/reward"):
        assert metric_name(name, exits) == name
    assert column_name("prompt", ("it",)) == "logged/prompt" and column_name("it", ("it",)) == "logged/it"
    assert column_name("reason", ("it",)) == "reason"
