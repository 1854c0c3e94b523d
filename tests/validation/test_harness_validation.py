"""`eval.harness`: what is refused before the harness or torch is loaded."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from ruyi_rl.harness import tasks
from ruyi_rl.harness.options import HarnessOptions
from ruyi_rl.harness.tasks import task_manager
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.published import published_scores
from ruyi_rl.validation import harness as validation
from ruyi_rl.validation.harness import OWNED, check_harness, harness_arguments


@pytest.fixture
def own(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("task: own_task\ndataset_path: json\noutput_type: generate_until\n")
    return str(tmp_path / "tasks")


def refusal(world_size=1, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_harness(HarnessOptions(**{"tasks": ["mmlu"]} | options), world_size)
    return caught.value


def test_what_is_right_passes(own):
    check_harness(HarnessOptions(backend="nonsense"), 1)  # no task: the harness is not run
    check_harness(HarnessOptions(tasks=published_scores().harness_tasks()), 8)
    check_harness(HarnessOptions(tasks=["own_task", "mmlu"], include_path=own, limit=0.5, num_fewshot=0), 1)
    check_harness(HarnessOptions(tasks=["mmlu"], arguments={"gen_kwargs": {"temperature": 0.5}}, limit=10), 1)


def test_a_harness_that_is_missing(monkeypatch):
    monkeypatch.setattr(validation, "harness_problem", lambda: "lm-evaluation-harness is not installed")
    caught = refusal()
    assert "not installed" in str(caught) and "pip install 'ruyi_rl[harness]'" in str(caught)


@pytest.mark.parametrize(
    "options, key, says",
    [
        ({"backend": "vlm"}, "backend", "'vllm'"),
        ({"backend": "vllm", "world_size": 2}, "backend", "2 ranks"),
        ({"limit": 0.0}, "limit", "above 0"),
        ({"limit": 1.5}, "limit", "whole number"),
        ({"batch_size": 0}, "batch_size", "above 0"),
        ({"num_fewshot": -1}, "num_fewshot", "0 or more"),
        ({"include_path": "nowhere"}, "include_path", "no folder"),
        ({"arguments": {"limit": 3}}, "arguments.limit", "eval.harness.limit"),
        ({"arguments": {"system_instructions": "x"}}, "arguments.system_instructions", "'system_instruction'"),
        ({"tasks": ["mmlu", "mmlu"]}, "tasks", "named twice"),
    ],
)
def test_refused(options, key, says):
    if options.get("backend") == "vllm" and not importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    caught = refusal(**options)
    assert caught.key == f"eval.harness.{key}" and says in str(caught)


def test_the_arguments_are_those_of_the_harness():
    assert {"gen_kwargs", "system_instruction", "bootstrap_iters"} | OWNED.keys() <= set(harness_arguments())


@pytest.mark.slow
def test_tasks_are_those_of_the_harness(own, monkeypatch):
    index = task_manager(own)
    monkeypatch.setattr(tasks, "task_manager", lambda *rest, **options: index)  # it takes seconds
    assert set(published_scores().harness_tasks()) <= set(index.all_tasks)
    caught = refusal(tasks=["own_task", "helaswag"], include_path=own)
    assert "no task 'helaswag'" in str(caught) and "did you mean 'hellaswag'" in str(caught)
    assert "lm-eval ls tasks" in str(refusal(tasks=["zzzzzzzzzzzzzz"]))


def test_a_command_is_refused_without_torch(tmp_path):
    probe = (
        "import sys, json; from ruyi_rl.cli.compose import compose_config, to_run_config\n"
        "from ruyi_rl.validation import validate; from ruyi_rl.refusal import Refusal\n"
        "given = ['stage=eval', 'eval.harness.tasks=[mmlu]', 'eval.harness.backend=vlm']\n"
        "try: validate(to_run_config(compose_config(given)))\n"
        "except Refusal as refusal: print(json.dumps([str(refusal), 'torch' in sys.modules]))"
    )
    ended = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True)
    said, torch = json.loads(ended.stdout.splitlines()[-1])
    assert "did you mean" in said and not torch
