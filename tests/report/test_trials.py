"""The tables of `stage=check_reward`."""

import io
import json

import pytest
from rich.console import Console

from ruyi_rl.report.trials import broken_list, print_samples, print_trials, trials_as_json
from ruyi_rl.rewards.contract import Verdict
from ruyi_rl.rewards.samples import data_samples
from ruyi_rl.rewards.trial import Speed, Trial

ROWS = [{"prompt": [{"role": "user", "content": f"What is\n{n} + 1 [b]?"}], "answer": str(n + 1)} for n in range(3)]


@pytest.fixture
def samples():
    said = [{"completion": f"long\x1b[2J words {'x ' * 80} {n + 1}"} for n in range(3)]
    return data_samples(ROWS, said, "large")


def shown(show, *arguments, width=120):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console, *arguments)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [72, 120, 200])
def test_scores_stand_whole_beside_their_samples(samples, width):
    trials = [Trial("mine", [], [1, 1, None, 0, 0, 0.123456]), Trial("other", [], [0.5] * 6)]
    text = shown(print_samples, samples, trials, [1.5, 1.5, None, 0.5, 0.5, 0.6], 4, width=width)
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert all(len(line) <= width for line in text.splitlines() if line[:1] in "│┃┡")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row[2:] for row in cells[:4]] == [
        ["reference", "1", "0.5", "1.5"],
        ["exchanged", "0", "0.5", "0.5"],
        ["reference", "1", "0.5", "1.5"],
        ["exchanged", "0", "0.5", "0.5"],
    ]
    assert [row[2:] for row in cells[4:]] == [
        ["reference", "1", "0.5", "1.5"],
        ["exchanged", "0.041", "0.5", "0.533"],
    ]
    assert cells[0][0].startswith("What is 0")
    assert cells[0][1].endswith("x 1") and cells[0][1].startswith("…") and "\x1b" not in text


def test_one_function_alone_has_no_sum(samples):
    text = shown(print_samples, samples, [Trial("mine", [], [0.0] * 6)], None, 2)
    assert "reward" not in text.splitlines()[2] and "made to be wrong" in text


def test_the_worst_outcome_of_a_check_is_shown_with_notes_and_speeds():
    verdicts = [Verdict("runs", "broken", "p", "r"), Verdict("runs", "note"), Verdict("time", "note", "slow", "wait")]
    speed = Speed(4, 1000.0, 250.0, 0.001, 0.0025, 0.5)
    text = shown(print_trials, [Trial("mine", verdicts, [1.0], speed), Trial("other", [Verdict("time", "holds")])])
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "BROKEN" in rows["runs"] and "–" in rows["runs"] and "note" in rows["time"] and "holds" in rows["time"]
    assert "note on mine: slow; wait" in text
    for words in ("1,000 samples/s", "250 samples/s (4)", "1.0 ms", "2.5 ms", "512 MiB", "slower with more workers"):
        assert words in text


def test_what_broke_is_listed_with_what_to_do():
    trials = [Trial("mine", [Verdict("order", "broken", "moved \x1b", "sort"), Verdict("time", "note", "n", "m")])]
    assert broken_list(trials) == "  mine, order: moved ␛\n    -> sort"


def test_json_holds_all_of_it(samples):
    trials = [Trial("mine", [Verdict("order", "broken", "p", "r")], [0.0] * 6, Speed(1, 1, 1, 1, 1, 1)), Trial("none")]
    found = json.loads(json.dumps(trials_as_json("math", samples, trials, None)))
    assert found["holds"] is False and len(found["samples"]) == 6
    assert found["functions"]["mine"]["checks"][0]["remedy"] == "r" and found["functions"]["none"]["speed"] is None
    assert found["samples"][0]["rewards"] == {"mine": 0.0, "none": None}
