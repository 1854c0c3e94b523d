"""The kept families on disk: what is named is whole, whenever a kill comes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ruyi_rl.checkpoint_folder import Seal, write_seal
from ruyi_rl.training import best_families
from ruyi_rl.training.best_families import BestFamilies
from ruyi_rl.training.quality import Best, Rates

HISTORY = {2: (0.5, 0.5), 4: (0.6, 0.4), 6: (0.7, 0.8), 8: (0.6, 0.9)}
"""Step -> pass rates of the exits."""


class Killed(BaseException):
    pass


def rates(step):
    return {name: Rates(step, rate, 0.1, rate) for name, rate in zip(("small", "large"), HISTORY[step], strict=True)}


def best_at(step) -> Best:
    best = Best()
    for each in HISTORY:
        if each <= step:
            best = best.after(rates(each))
    return best


def evaluated(families: BestFamilies, step: int, keep_best: str = "exit") -> None:
    kept = best_at(step).kept(keep_best)
    if any(each.step == step for each in kept.values()):
        folder = families.saving(step)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(f"{step}")
        families.keep(step)
    families.name(kept, keep_best, step)


def checkpointed(folder: Path, step: int) -> None:
    (folder / f"checkpoint-{step}").mkdir()
    write_seal(folder / f"checkpoint-{step}", Seal(step, 1, "off", {}))


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "best").iterdir())


def written(folder: Path) -> dict:
    return json.loads((folder / "best" / "best.json").read_text())


def named(folder: Path) -> dict:
    return {name: each["family"] for name, each in written(folder)["exits"].items()}


def require_whole(folder: Path) -> None:
    """Each family that is named, and each that has a name, is whole."""
    if (folder / "best" / "best.json").exists():
        for family in named(folder).values():
            assert (folder / "best" / family).is_dir()
    for family in (folder / "best").glob("step-*"):
        step = family.name.removeprefix("step-")
        assert [(family / name).read_text() for name in ("config.json", "model.safetensors")] == [step, step]


@pytest.fixture
def families(tmp_path):
    (tmp_path / "start").mkdir()
    return BestFamilies(tmp_path / "best", tmp_path, tmp_path / "start")


def test_what_no_exit_is_best_at_any_more_goes(families, tmp_path):
    seen = []
    for step in HISTORY:
        evaluated(families, step)
        seen.append(there(tmp_path))
    both = ["best.json", "step-6", "step-8"]
    assert seen == [["best.json", "step-2"], ["best.json", "step-2", "step-4"], ["best.json", "step-6"], both]
    assert named(tmp_path) == {"small": "step-6", "large": "step-8"}
    assert written(tmp_path)["exits"]["large"] == {**vars(rates(8)["large"]), "family": "step-8"}


def test_by_the_mean_one_family_is_kept_and_its_rates_are_told(families, tmp_path):
    for step in HISTORY:
        evaluated(families, step, "mean")
    assert there(tmp_path) == ["best.json", "step-6"] and written(tmp_path)["mean"] == pytest.approx(0.75)
    assert named(tmp_path) == {"small": "step-6", "large": "step-6"}


def test_a_family_outlives_the_last_checkpoint_that_goes_on_with_it(families, tmp_path):
    evaluated(families, 2)
    evaluated(families, 4)
    checkpointed(tmp_path, 5)
    evaluated(families, 6)
    assert there(tmp_path) == ["best.json", "step-2", "step-4", "step-6"]
    again = BestFamilies(tmp_path / "best", tmp_path, tmp_path / "start")
    again.go_back(best_at(5).kept("exit"), "exit", 5)
    assert there(tmp_path) == ["best.json", "step-2", "step-4"]
    assert named(tmp_path) == {"small": "step-4", "large": "step-2"}
    evaluated(again, 6)
    checkpointed(tmp_path, 7)
    shutil.rmtree(tmp_path / "checkpoint-5")
    evaluated(again, 8)
    assert there(tmp_path) == ["best.json", "step-6", "step-8"]


def test_the_families_before_and_after_the_training_are_named_where_they_are(families, tmp_path):
    best = best_at(2).after({name: Rates(0, 0.95, 0.1, 0.9) for name in ("large",)})
    evaluated(families, 2)
    checkpointed(tmp_path, 2)
    families.name(best.kept("exit"), "exit", 2)
    assert named(tmp_path) == {"small": "step-2", "large": "../start"}
    last = best.after({"small": Rates(10, 1.0, 0.0, 1.0)})
    families.name(last.kept("exit"), "exit", 10, last=tmp_path)
    assert named(tmp_path) == {"small": "..", "large": "../start"} and there(tmp_path) == ["best.json"]


def test_one_that_was_never_kept_is_named_as_none(families, tmp_path):
    evaluated(families, 2)
    families.name({"small": Rates(1, 0.9, 0.1, 0.9)}, "exit", 3)
    assert named(tmp_path) == {"small": None} and families.family(2) is None


def test_a_kill_at_any_moment_leaves_whole_families_and_the_resumed_run_agrees(tmp_path, monkeypatch):
    """Kills before each call that changes the disk, then goes on from the newest checkpoint, as a resumed run does."""
    killed_at, calls, remove = None, 0, shutil.rmtree

    def counted(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            nonlocal calls
            if tmp_path in Path(arguments[0]).parents:  # other tests' threads write, too
                calls += 1
            if calls == killed_at:
                if name == "rmtree" and Path(arguments[0]).is_dir():
                    for file in [*Path(arguments[0]).iterdir()][:1]:
                        file.unlink()
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree"), (best_families, "file_sum")):
        counted(owner, name)

    def run(folder):
        step, families = 0, BestFamilies(folder / "best", folder, folder)
        saved = [int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")]
        step = max(saved, default=0)
        families.go_back(best_at(step).kept("exit"), "exit", step)
        for each in HISTORY:
            if each > step:
                evaluated(families, each)
            if each in (4, 6) and each > step:
                checkpointed(folder, each + 1)
            if each == 6 and (folder / "checkpoint-5").exists():
                remove(folder / "checkpoint-5")

    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole")
    moments = calls
    assert moments > 15
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        killed_at, calls = moment, 0
        with pytest.raises(Killed):
            run(folder)
        killed_at = None
        require_whole(folder)
        run(folder)
        require_whole(folder)
        assert there(folder) == there(tmp_path / "whole"), moment
        assert (folder / "best/best.json").read_text() == (tmp_path / "whole/best/best.json").read_text()
