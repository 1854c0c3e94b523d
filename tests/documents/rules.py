"""How each command of the documents is run in a test: by its first words, one rule each.

What a page names and a test cannot have (a real model, a host, a file of the reader's) is replaced by what `STAND_INS`
says. A command whose family is the embedded one then runs, made short by `SHORT`. Of a sweep the first and last jobs
are composed and checked; the first runs where its SFT or GRPO has a name by which other commands read it, the first two
where the sweep has a folder of its own. A command for a real family, a server or the hub is composed and checked: all
that the command refuses before it loads a library. Launchers' and scripts' own arguments are parsed by them. No rule:
the test fails.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import ruyi_rl.cli.compose
from ruyi_rl.__main__ import main
from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config, working_conf
from ruyi_rl.cli.overrides import parse_overrides
from ruyi_rl.cli.sweep.jobs import sweep_jobs
from ruyi_rl.cli.sweep.settings import sweep_settings
from ruyi_rl.config import RunConfig
from ruyi_rl.validation import validate
from tests.conftest import bubblewrap_problem
from tests.documents.pages import ROOT, Piece, words

STAND_INS = {
    "<folder with train.jsonl>": "stand_ins/gsm8k",
    "<folder with test.jsonl>": "stand_ins/gsm8k",
    "<folder with HumanEval.jsonl.gz>": "stand_ins/humaneval",
    "<folder>": "stand_ins/rows",
    "<file>": "completions.jsonl",
    "<that file>": "runs/tiny-arithmetic/rollouts/rollouts.jsonl",
    "<folder of a family>": "runs/tiny-arithmetic/grpo",
    "<folder of a Ruyi2>": "runs/first/sft",
    "runs/sft-seed${seed}/sft": "runs/tiny-arithmetic/sft",
    "runs/dae/dae-${seed}/grpo": "runs/dae_tiny/grpo",
}
"""What a page writes -> what stands for it in the working folder."""
BASES = {
    "Qwen/Qwen3-14B-Base": "stand_ins/qwen3_40",
    "Qwen/Qwen2.5-7B": "stand_ins/qwen2_28",
    "Qwen/Qwen3-0.6B": "stand_ins/qwen3_28",
}
"""A base on the hub -> a folder with a config.json of as many layers."""
SHORT = {
    "pretrain.trainer.max_steps": 1,
    "sft.trainer.max_steps": 2,
    "expanded_pretrain.trainer.max_steps": 1,
    "expanded_sft.trainer.max_steps": 1,
    "compress.recover_steps": 1,
    "compress.calibration_rows": 16,
    "grpo.trainer.max_steps": 2,
    "grpo.trainer.per_device_train_batch_size": 24,
    "grpo.trainer.gradient_accumulation_steps": 1,
    "grpo.trainer.max_completion_length": 8,
    "evaluation.problems": 2,
    "evaluation.samples": 2,
    "export.check": "logits",
    "rollout.backend": "transformers",
    "check_reward.samples": 4,
    "generate.max_new_tokens": 8,
}
"""What makes a command of the embedded family one of a second."""
_FEW = ["train_problems=64", "test_problems=8", "demonstrations=1"]
FEW_ROWS = {
    "arithmetic": [f"data.task.{few}" for few in _FEW],
    "toy_code": [f"data.task.{few}" for few in _FEW],
    "mixture": [f"data.task.{task}.{few}" for task in ("arithmetic", "toy_code") for few in _FEW],
}
"""The same of the embedded tasks, by `data.source`."""
UNMEASURED = ["evaluation.problems=0"]
"""For trainings beside the first: held-out rates around each of them would take most of the time."""
SHARED = {"grpo": "runs/tiny-arithmetic/sft", "sft": "runs/tiny-arithmetic/init"}
"""Stage -> the family that it starts from, where the page has trained it already."""
READERS_OWN = {"HF_TOKEN": "a-token"}
"""Variables that a reader has set."""
VLLM_SIGNATURES = ("engine/arg_utils.py", "sampling_params.py")
"""Files of vLLM's that name the arguments of its engines and of its sampling."""
TYPED = "3+5+7+4=\n"
"""What a command finds on its standard input."""


def check(piece: Piece) -> None:
    """Run a command line of a page in the working folder. Raises AssertionError where it is not as the page says."""
    text = piece.text
    for placeholder, stand_in in STAND_INS.items():
        text = text.replace(placeholder, stand_in)
    found = words(text)
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        found = found[1:]
    for begin, rule in RULES.items():
        if found[: len(begin)] == list(begin):
            rule(found[len(begin) :])
            return
    raise AssertionError(f"no rule for {text!r}: add one to tests/documents/rules.py")


def ruyi(arguments: list[str]) -> None:
    """`python -m ruyi_rl …`"""
    if "-m" in arguments:
        sweep([word for word in arguments if word != "-m"])
    elif any(word.startswith("-") for word in arguments):
        assert main(arguments) == 0
    else:
        config = composed(arguments)
        if config.stage.name == "memory":
            assert main([*arguments, f"model.base={config.model.base}"]) == 0
        elif embedded(config):
            assert main(shortened(arguments, config)) == 0


def sweep(arguments: list[str]) -> None:
    """`python -m ruyi_rl -m …`"""
    settings, rest = sweep_settings(arguments, ConfigSource(working=working_conf()))
    if settings.search is not None:
        composed([word for word in rest if not parse_overrides([word])[0].is_sweep_override()])
        return
    jobs = [job.overrides for job in sweep_jobs(rest)]
    configs = [composed(job) for job in (*jobs[:2], *jobs[2:][-2:])]
    assert len({config.run_dir for config in configs}) == len(configs) > 1
    if not embedded(configs[0]):
        return
    if settings.folder is not None:
        with (
            mock.patch("ruyi_rl.cli.sweep.local.run_job", lambda command, *others: main(command[3:])),
            mock.patch("ruyi_rl.cli.sweep.run.sweep_jobs", lambda overrides: sweep_jobs(overrides)[:2]),
        ):
            assert main(["-m", f"hydra.sweep.dir={settings.folder}", *shortened(rest, configs[0], named=True)]) == 0
    elif any(word.startswith("name=") for word in rest) and configs[0].stage.name in SHARED:
        assert main(shortened(jobs[0], configs[0])) == 0


def composed(arguments: list[str]) -> RunConfig:
    """The command's configuration with stand-ins for real models, checked as before a run."""
    source = ConfigSource(working=working_conf())
    config = to_run_config(compose_config(arguments, source))
    config.model.base = BASES.get(config.model.base, config.model.base)
    config.launch = False  # a server would take this process over
    config.rollout.addresses = {}  # the reader's servers
    with mock.patch.dict("os.environ", READERS_OWN), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", False):
        validate(config)
    return config


def embedded(config: RunConfig) -> bool:
    """Whether the command can really run here."""
    benchmarks = config.eval.benchmarks.values()
    rewards = [config.reward, *(benchmark.reward for benchmark in benchmarks)]
    functions = [function for reward in rewards for function in reward.functions.values()]
    elsewhere = (
        config.rollout.backend == "vllm_server",
        config.num_processes > 1,
        config.push_to,
        any(function.kwargs.get("url") for function in functions),
        any("sandbox" in function.kwargs for function in functions) and bubblewrap_problem(),
        any(benchmark.data.path and not Path(benchmark.data.path).exists() for benchmark in benchmarks),
    )
    return config.model.name == "tiny" and not any(elsewhere)


def shortened(arguments: list[str], config: RunConfig, named: bool = False) -> list[str]:
    """The same command in a second: under the name that the page says, with `SHORT` in place of its values."""
    typed = [word.partition("=")[0].lstrip("+") for word in arguments]
    kept = [word for word, key in zip(arguments, typed) if key not in (*SHORT, "rollout", "launch")]
    first = config.name == "tiny-arithmetic"
    measured = named or first or config.stage.name not in ("sft", "grpo") or config.evaluation.every is not None
    name = [] if named or "name" in typed else [f"name={config.name}"]
    shared = SHARED.get(config.stage.name)
    own = first or {"start_from", "experiment", "stages"} & set(typed)
    start = [] if shared is None or own or not Path(shared).is_dir() else [f"start_from={shared}"]
    short = [f"{key}={value}" for key, value in SHORT.items()]
    short += [f"reward.functions.{function}.workers=1" for function in config.reward.functions]
    few = list(FEW_ROWS.get(config.data.source, []))
    if config.sft.stage_two.data is not None:
        few += [f"sft.stage_two.{row}" for row in FEW_ROWS.get(config.sft.stage_two.data.source, [])]
    return [*kept, *name, *start, *few, *short, *([] if measured else UNMEASURED)]


def script(arguments: list[str]) -> None:
    """`python scripts/…`: as far as its own parser."""
    path = ROOT / arguments[0]
    assert "parse_args()" in path.read_text(), f"{path.name} parses no arguments: it would run"

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parsed(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    with (
        mock.patch.object(sys, "argv", [str(path), *arguments[1:]]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parsed),
        mock.patch.dict("os.environ"),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Parsed:
            return
    raise AssertionError(f"{path.name} did not parse its arguments")


def make(arguments: list[str]) -> None:
    """`make target ARGS="…"`: the target is there, and for `run` the command that it becomes is right."""
    target, *settings = arguments
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
    given = [word.removeprefix("ARGS=") for word in settings]
    assert all(word.startswith("ARGS=") for word in settings)
    if target == "run":
        composed(["stage=grpo", *(word for text in given for word in shlex.split(text))])


def torchrun(arguments: list[str]) -> None:
    """`torchrun … -m ruyi_rl …`"""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.module and options.training_script == "ruyi_rl"
    composed(options.training_script_args)


def deepspeed(arguments: list[str]) -> None:
    """`deepspeed … --module ruyi_rl …`"""
    from deepspeed.launcher.runner import parse_args

    options = parse_args(arguments)
    assert options.module and options.user_script == "ruyi_rl"
    composed(options.user_args)


def batch_script(text: str) -> None:
    """A shell script: bash reads it, its #SBATCH lines are options, and what it launches is right."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for line in text.splitlines():
        assert not line.startswith("#SBATCH") or re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line), line
    joined = re.sub(r"\$\{?([A-Z_]+|[a-z]+)\}?", "1", text.replace("\\\n", " "))
    launched = re.findall(r"torchrun .*|^python -m ruyi_rl .*", joined, re.MULTILINE)
    assert launched, "it launches nothing"
    for line in launched:
        check(Piece("", 0, "sh", line))


def pip(arguments: list[str]) -> None:
    """`pip install …[extra]`: the extra is one."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\[([a-z,-]+)\]", " ".join(arguments))
    assert arguments[0] == "install" and named
    assert set(",".join(named).split(",")) <= set(extras)


def apt_get(arguments: list[str]) -> None:
    """`apt-get install …`: what the set-up installs, too."""
    setup = (ROOT / "scripts/setup.py").read_text()
    assert arguments[0] == "install" and all(name in setup for name in arguments[1:])


def activate(arguments: list[str]) -> None:
    """`source .venv/bin/activate`: the environment that the set-up makes."""
    assert arguments == [".venv/bin/activate"] and ".venv/bin/python" in (ROOT / "Makefile").read_text()


def submit(arguments: list[str]) -> None:
    """`sbatch job.sh`: no option of its own, since they stand in the script."""
    assert len(arguments) == 1 and arguments[0].endswith(".sh")


RULES: dict[tuple[str, ...], Callable[[list[str]], None]] = {
    ("python", "-m", "ruyi_rl"): ruyi,
    ("ruyi_rl",): ruyi,
    ("python",): script,
    ("make",): make,
    ("torchrun",): torchrun,
    ("deepspeed",): deepspeed,
    ("pip",): pip,
    ("apt-get",): apt_get,
    ("source",): activate,
    ("sbatch",): submit,
}
"""A command's first words -> its rule; the first that fits."""


def snippet(piece: Piece, names: dict[str, object]) -> None:
    """A Python block, which goes on from what `names` holds. One that starts a vLLM engine is only held against vLLM's
    signatures: tests/stages/test_plain_libraries.py starts the engine of an export."""
    text = piece.text
    for base, stand_in in BASES.items():
        text = text.replace(base, stand_in)
    code = compile(text, str(piece), "exec")
    if "from vllm import" not in text:
        exec(code, names)  # noqa: S102
        return
    vllm = importlib.util.find_spec("vllm")
    if vllm is None:
        return
    sources = [Path(folder, name) for folder in vllm.submodule_search_locations for name in VLLM_SIGNATURES]
    known = set(re.findall(r"^ {4,8}(\w+):", "".join(source.read_text() for source in sources), re.MULTILINE))
    keywords = {
        keyword.arg for call in ast.walk(ast.parse(text)) if isinstance(call, ast.Call) for keyword in call.keywords
    }
    assert keywords <= known, keywords - known


@contextmanager
def composing_once() -> Iterator[None]:
    """Hydra composes equal choices once: it takes a tenth of a second, and a command three times of that."""
    compose, known = ruyi_rl.cli.compose._compose, {}

    def remembered(overrides, source, groups, others=None):
        return compose(overrides, source, groups, known)

    with mock.patch("ruyi_rl.cli.compose._compose", remembered):
        yield


def standard_input() -> io.StringIO:
    """What a command is typed, on no terminal."""
    return io.StringIO(TYPED)
