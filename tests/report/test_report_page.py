"""The page: what it holds, what it survives, what it never lets through."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from socket import gethostname

import pytest

from ruyi_rl.report.html import upkeep as upkeep_module
from ruyi_rl.report.html import write_report
from ruyi_rl.report.html.page import page
from ruyi_rl.report.html.records import read_run
from ruyi_rl.report.html.samples import LONGEST
from ruyi_rl.report.html.upkeep import ERROR_FILE, Upkeep, keep_report
from ruyi_rl.run_folder import write_json, write_text
from tests.report.made_run import left, made_run, write_completions

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>"\'&</pre></style>'
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Document(HTMLParser):
    """Checks that all is closed in order, and collects elements and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def document(folder):
    return Document(write_report(folder).read_text())


def test_all_of_a_whole_run_is_there(tmp_path):
    found = document(made_run(tmp_path / "run"))
    identifiers = {each["id"] for each in found.all("section")}
    assert identifiers == {"exits", "stages", "benchmarks", "routing", "curves", "time", "samples", "config"}
    assert {each["href"] for each in found.all("a") if each["href"].startswith("#")} == {
        f"#{name}" for name in identifiers
    }
    assert "30.0 ± 3.0 % → 60.0 ± 3.0 %" in found.text and "after sft → by eval" in found.text
    for told in (
        "Held-out pass rate",
        "Entropy",
        "Learning rate",
        "rewards/mine/mean",
        "pass@4",
        "maj@4",
        "+20.0 points",
    ):
        assert told in found.text, told
    assert "Cut completions 0 %" in found.text  # what never changes needs no panel
    assert "sample 2, after grpo" in found.text and r"\boxed{8}" in found.text
    assert "acc_norm" in found.text and "confidence rule" in found.text
    titles = [each["aria-label"] for each in found.all("svg")]
    assert all(each["role"] == "img" for each in found.all("svg")) and all(titles)
    assert any("rollout 66 %" in title or "rollout 65 %" in title for title in titles)
    linked = [each["href"] for each in found.all("a") if not each["href"].startswith("#")]
    assert {"grpo/", "sft/metrics.jsonl", "eval/summary.json"} <= set(linked)
    assert all((tmp_path / "run" / place).exists() for place in linked)


def test_it_needs_nothing_but_itself(tmp_path):
    text = write_report(made_run(tmp_path / "run")).read_text()
    assert (
        not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
        and "@import" not in text
        and "url(" not in text
    )
    found = Document(text)
    assert [each["href"] for each in found.all("link")] == ["data:,"] and not found.all("img")


def test_headings_are_in_order(tmp_path):
    found = document(made_run(tmp_path / "run"))
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(b - a for a, b in pairwise(levels)) == 1


@pytest.mark.parametrize("where", ["completion", "prompt", "benchmark", "exit", "config", "message", "metric", "name"])
def test_nothing_that_a_run_says_becomes_markup(where, tmp_path):
    plain, run = document(made_run(tmp_path / "plain")), made_run(tmp_path / "run")
    if where in ("completion", "prompt", "benchmark"):
        for stage in ("sft", "grpo"):
            write_completions(run / stage, ("small", "medium", "large"), "after", **{where: EVIL})
    elif where == "exit":
        made_run(run, exits=(EVIL.replace("/", ""), "medium", "large"))
    elif where == "config":
        write_text(run / "eval" / "config.yaml", f"data: {{name: {json.dumps(EVIL)}}}\n# {EVIL}")
    elif where == "message":
        manifest = json.loads((run / "grpo" / "manifest.json").read_text())
        write_json(run / "grpo" / "manifest.json", {**manifest, "status": "failed", "message": EVIL})
    elif where == "metric":
        with open(run / "grpo" / "metrics.jsonl", "a") as file:
            file.writelines(
                json.dumps({"phase": 1, "step": 41 + n, f"small/{EVIL}": float(n)}) + "\n" for n in range(2)
            )
    else:
        write_text(run / "eval" / "config.yaml", json.dumps({"name": EVIL}))
    found = document(run)
    assert "alert" in found.text and not found.all("img")
    assert len(found.all("script")) == len(plain.all("script")) == 1
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]


def test_scripts_of_others_would_not_run(tmp_path):
    text = write_report(made_run(tmp_path / "run")).read_text()
    policy = next(each for each in Document(text).all("meta") if each.get("http-equiv"))["content"]
    assert "default-src 'none'" in policy and re.search(r"script-src 'sha256-[\w+/=]{44}';", policy)


def test_texts_of_all_kinds_are_shown(tmp_path):
    run = made_run(tmp_path / "run")
    text = "مرحبا 你好 \ud83d\x1b[2J " + "no end " * 4000
    write_completions(run / "grpo", ("small",), "after grpo", completion=text)
    found = document(run)
    assert "مرحبا 你好" in found.text and "\x1b" not in found.text and "␛[2J" in found.text
    assert f"{len(text) - LONGEST:,} more characters" in found.text
    assert all(each.get("dir") == "auto" for each in found.all("pre") if "config" not in each["class"])


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_is_not_done(status, tmp_path):
    found = document(made_run(tmp_path / "run", stages=("init", "sft", "grpo"), status=status))
    assert f"40 steps, {status}" in found.text and "30.0 ± 3.0 %" in found.text and "Reward" in found.text
    assert ("the disk is full" in found.text) == (status == "failed")


def test_runs_that_hold_next_to_nothing(tmp_path):
    assert write_report(tmp_path) is None and not list(tmp_path.iterdir())
    left(tmp_path, "init", "running")
    assert "Nothing is known of them yet" in document(tmp_path).text
    for content in ("", "{", '{"phase": 1, "step": 1}\n', '{"phase": 1, "step": 1, "small/loss": NaN}\n[1]\n{"phase'):
        left(tmp_path, "sft", "running")
        write_text(tmp_path / "sft" / "metrics.jsonl", content)
        write_text(tmp_path / "sft" / "completions.jsonl", content)
        write_text(tmp_path / "sft" / "summary.json", content)
        document(tmp_path)
    assert "never finite" in document(tmp_path).text
    write_text(tmp_path / "sft" / "metrics.jsonl", '{"phase": 1, "step": 1, "small/loss": 2.5}\n')
    assert any("from 2.5 to 2.5" in each["aria-label"] for each in document(tmp_path).all("svg"))


def test_a_killed_run_is_told_from_one_that_runs(tmp_path):
    left(tmp_path, "init", "running")
    assert read_run(tmp_path).stages[0].status == "running"  # nothing says who runs it: another host may
    write_text(tmp_path / ".lock", "999999999 elsewhere")
    assert read_run(tmp_path).stages[0].status == "running"
    write_text(tmp_path / ".lock", f"999999999 {gethostname()}")
    assert read_run(tmp_path).stages[0].status == "killed"


def test_stages_stand_in_the_pipelines_order(tmp_path):
    for stage in ("compress", "grpo", "sft", "init"):
        left(tmp_path, stage, config="stages: [init, grpo, sft]")
    assert [record.name for record in read_run(tmp_path).stages] == ["init", "grpo", "sft", "compress"]


def test_exits_keep_their_colours_from_shallow_to_deep(tmp_path):
    run = read_run(made_run(tmp_path / "run", exits=("large", "small")))
    lines = re.findall(r'class="line exit-(\d)" data-exit="(\d)" data-name="(\w+)"', page(run))
    assert {(number, name) for _, number, name in lines} == {("0", "small"), ("1", "large")}


def test_thousands_of_steps_make_no_large_page(tmp_path):
    small = write_report(made_run(tmp_path / "small", steps=400)).stat().st_size
    large = write_report(made_run(tmp_path / "large", steps=6000)).stat().st_size
    assert large < 1.3 * small + 20_000


def test_a_fault_of_the_report_is_told_and_ends_nothing(tmp_path, monkeypatch):
    run, told = made_run(tmp_path / "run"), []

    def broken(folder: Path):
        raise KeyError("no such thing")

    monkeypatch.setattr(upkeep_module, "write_report", broken)
    keep_report(run, told.append)
    assert len(told) == 1 and "KeyError: 'no such thing'" in told[0] and "stage=report" in told[0]
    assert "in broken" in (run / ERROR_FILE).read_text()
    monkeypatch.undo()
    keep_report(run, told.append)
    assert len(told) == 1 and (run / "report.html").is_file() and not (run / ERROR_FILE).exists()


def test_a_training_refreshes_it_seldom(tmp_path, monkeypatch):
    clock, written = [0.0], []

    def slow(run, say):
        written.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr(upkeep_module, "keep_report", slow)
    upkeep = Upkeep(tmp_path, print, lambda: clock[0])
    while clock[0] < 4000:
        clock[0] += 7.0
        upkeep.refresh()
    assert written[0] >= 60 and 2.0 * len(written) <= 0.01 * clock[0] and len(written) >= 5
