"""Published solutions through the evaluation stage: what is right scores 1, and what is not does not."""

import json
from pathlib import Path

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.pipeline import run_stages
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.validation import validate

pytestmark = pytest.mark.slow


def evaluated(family_folder, run, *overrides):
    """Benchmark -> what a command with these overrides finds."""
    config = to_run_config(
        compose_config(
            ["stage=eval", f"start_from={family_folder}", f"run_dir={run}", "rollout=transformers", *overrides]
        )
    )
    validate(config)
    run_stages(config, [])
    return StageFolder(Path(config.run_dir) / "eval").summary()["benchmarks"]


def test_humaneval_and_gsm8k_are_solved_by_their_own_solutions(family_folder, shared_data, tmp_path, confinable):
    found = evaluated(
        family_folder,
        tmp_path / "x",
        "benchmark=[humaneval,gsm8k]",
        "eval.completions=reference",
        f"eval.benchmarks.humaneval.data.path={shared_data / 'humaneval'}",
        "eval.benchmarks.humaneval.data.train=HumanEval",
        f"eval.benchmarks.gsm8k.data.path={shared_data / 'gsm8k'}",
    )
    for name, problems in {"humaneval": 164, "gsm8k": 1319}.items():
        score = found[name]["exits"]["reference"]
        assert (found[name]["problems"], found[name]["left_out"], score["failures"]) == (problems, 0, 0)
        assert score["pass@1"]["value"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "x" / "eval" / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 164 + 1319
    # Each solution for the next problem.
    moved = tmp_path / "moved.jsonl"
    with open(moved, "w") as file:
        for name in ("humaneval", "gsm8k"):
            own = [line for line in lines if line["benchmark"] == name]
            for line, other in zip(own, [*own[1:], own[0]], strict=True):
                row = {key: line[key] for key in ("benchmark", "problem", "prompt")}
                file.write(json.dumps({**row, "completion": other["completion"], "exit": "moved"}) + "\n")
    found = evaluated(
        family_folder,
        tmp_path / "y",
        "benchmark=[humaneval,gsm8k]",
        f"eval.completions={moved}",
        f"eval.benchmarks.humaneval.data.path={shared_data / 'humaneval'}",
        "eval.benchmarks.humaneval.data.train=HumanEval",
        "eval.benchmarks.humaneval.problems=30",
        f"eval.benchmarks.gsm8k.data.path={shared_data / 'gsm8k'}",
    )
    assert found["humaneval"]["exits"]["moved"]["pass@1"]["value"] < 0.05
    assert 0 < found["gsm8k"]["exits"]["moved"]["pass@1"]["value"] < 0.05, "some neighbours have the same answer"
