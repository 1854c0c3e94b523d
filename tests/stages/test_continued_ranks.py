"""One run on two ranks, then on one, then on two again, by the same config, against one rank from beginning to end."""

import copy
import json
from pathlib import Path

import continued_ranks
import pytest
from safetensors.torch import load_file

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import StopOnSignal, read_metrics
from ruyi_rl.training.options import EvaluationOptions, SFTOptions
from tests.forked_ranks import run_ranks

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TRAINER = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 1}


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """`deepspeed=auto`: ZeRO-2 on two ranks, none on one."""
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(
        stage=StageOptions("sft"),
        name="x",
        run_dir=str(tmp_path / "x"),
        model=ModelOptions(exits={"small": 0, "large": 1}, scratch={**SHAPE, "num_key_value_heads": 1, "head_dim": 8}),
        data=DataOptions(path=str(tmp_path / "rows.jsonl"), holdout=8, test=None),
        sft=SFTOptions(trainer=dict(TRAINER)),
        evaluation=EvaluationOptions(problems=0),
    )


@pytest.mark.slow
def test_a_run_goes_on_on_fewer_ranks_and_on_as_many_as_it_began_with(config, tmp_path, monkeypatch, capsys):
    shown = run_ranks("continued_ranks:fail_at", config, 2, log=tmp_path / "first")
    assert "4 a rank × 2 ranks × 1 micro-batches" in shown and "checkpoint-1 (after step 1)" in shown
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", StopOnSignal.on_step_end)
        continued_ranks.fail_at(config, 4)
    shown = capsys.readouterr().out
    assert "4 a rank × 1 ranks × 2 micro-batches" in shown and "begun on 2, with as many rows a step" in shown
    assert "written by 2 ranks (zero2), continued by 1 rank (no DeepSpeed)" in shown
    shown = run_ranks("ruyi_rl.pipeline:run_stages", config, [], log=tmp_path / "last")
    assert "written by 1 rank (no DeepSpeed), continued by 2 ranks (zero2)" in " ".join(shown.split())
    assert "4 a rank × 2 ranks × 1 micro-batches" in shown and "begun on" not in shown

    folder = Path(config.run_dir) / "sft"
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert StageFolder(folder).manifest().world_size == 2

    one = copy.deepcopy(config)
    one.run_dir, one.start_from = str(tmp_path / "one"), str(Path(config.run_dir) / "init")
    one.sft.trainer["gradient_accumulation_steps"] = 2
    run_stages(one, [])
    whole = Path(one.run_dir) / "sft"
    alone = read_metrics(whole / "metrics.jsonl")
    assert [row["num_tokens"] for row in rows] == [row["num_tokens"] for row in alone]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    start, got, wanted = (load_file(Path(path) / "model.safetensors") for path in (one.start_from, folder, whole))
    for name in wanted:
        apart = (got[name] - wanted[name]).norm() / (wanted[name] - start[name]).norm()
        assert apart <= 5e-5, f"{name}: {apart:.1e}"
