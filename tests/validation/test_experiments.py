"""Every shipped experiment composes and validates without its weights, with its batches and its memory estimate."""

import copy
import functools
import json
from pathlib import Path

import pytest

from ruyi_rl.cli.compose import compose_config, conf_dir, to_run_config
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.published import published_scores
from ruyi_rl.stages import memory
from ruyi_rl.tools import run_tool
from ruyi_rl.validation import validate

BASES = {
    "qwen3_14b": {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "qwen2_5_7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "qwen3_0p6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
BASES["ruyi2"] = BASES["qwen3_14b"] | {
    "model_type": "ee_qwen3",
    "early_exit_points": [2, 21, 39],
    "shared_heads": False,
}
EXPERIMENTS = {
    "quickstart": None,
    "dae_tiny": None,
    "per_exit_ablation": None,
    "ruyi2_14b": "qwen3_14b",
    "ruyi_7b": "qwen2_5_7b",
    "ruyi_7b_one_gpu": "qwen2_5_7b",
    "qwen3_0p6b_one_gpu": "qwen3_0p6b",
    "ruyi2_eval": "ruyi2",
}
"""Experiment -> what stands in the place of its weights; None: it needs none."""
BATCHES = {
    "ruyi2_14b": "= 768 completions a step: 32 prompts × 3 exits × G 8, deepspeed=zero3",
    "ruyi_7b": "= 1,280 completions a step: 32 prompts × 5 exits × G 8, deepspeed=zero3",
    "ruyi_7b_one_gpu": "= 160 completions a step: 4 prompts × 5 exits × G 8, deepspeed=zero3_offload",
    "qwen3_0p6b_one_gpu": "= 96 completions a step: 4 prompts × 3 exits × G 8, deepspeed=off",
    "quickstart": "= 576 completions a step: 24 prompts × 3 exits × G 8, deepspeed=off",
    "dae_tiny": "= 384 completions a step: 48 prompts × 1 exits × G 8, deepspeed=off",
    "per_exit_ablation": "= 576 completions a step: 24 prompts × 3 exits × G 8, deepspeed=off",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(autouse=True)
def working_folder(folder, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(memory, "gpu_bytes", lambda: None)


@functools.cache
def _composed(experiment: str):
    given = [f"experiment={experiment}", f"name={experiment}"]
    if (base := EXPERIMENTS[experiment]) is not None:
        folder = Path(base)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(BASES[base]))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        given.append(f"model.base={folder}")
    return to_run_config(compose_config(given))


def composed(experiment: str, stage: str | None = None):
    """The experiment's configuration, which a test may change."""
    config = copy.deepcopy(_composed(experiment))
    if stage is not None:
        config.stage.name = stage
    return config


def test_all_are_looked_at():
    assert EXPERIMENTS.keys() == {file.stem for file in (conf_dir() / "experiment").glob("*.yaml")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_validates(experiment):
    if experiment == "ruyi2_eval":
        pytest.importorskip("lm_eval")
    config = composed(experiment)
    if config.stage.name == "overview":
        config.stage.name = "grpo"
    validate(config)


@pytest.mark.parametrize("experiment", BATCHES)
def test_it_prints_its_batches_and_its_memory(experiment, capsys):
    config = composed(experiment, "memory")
    validate(config)
    run_tool(config)
    shown = capsys.readouterr().out
    assert BATCHES[experiment] in shown
    trained = sum(stage in ("sft", "expanded_sft", "grpo") for stage in config.stages)
    assert shown.count("most on a rank, about") == trained
    assert "are needed" not in shown  # it fits where it says that it runs
    assert ("80 GB are there" in shown) == experiment.startswith("ruyi")


@pytest.mark.parametrize(
    ("experiment", "gigabytes", "remedy"),
    [
        ("ruyi2_14b", 40, "deepspeed="),
        ("ruyi_7b_one_gpu", 24, "rollout.tensor_parallel"),
        ("ruyi_7b", 24, "deepspeed="),
    ],
)
def test_a_device_that_is_too_small_is_told(experiment, gigabytes, remedy, capsys):
    config = composed(experiment, "memory")
    config.memory.gigabytes = gigabytes
    run_tool(config)
    (line, *_) = [line for line in capsys.readouterr().out.splitlines() if "are needed" in line]
    assert f"the GPU has {gigabytes} GB" in line and remedy in line


def test_more_ranks_take_less():
    peaks = []
    for ranks in (8, 16):
        config = composed("ruyi2_14b", "memory")
        config.num_processes = ranks
        (_, grpo) = memory.reports(config, config.stages, memory.device(config))
        peaks.append(grpo[1].estimate.peak)
    assert peaks[1] < peaks[0]


def test_a_base_on_the_hub_that_cannot_be_reached(monkeypatch):
    asked = []

    class Session:
        def get(self, url, **arguments):
            asked.append(url)
            raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    config = composed("ruyi2_14b", "memory")
    config.model.base = "owner/unknown"
    validate(config)
    with pytest.raises(Refusal, match=r"model\.base: config\.json of owner/unknown cannot be had: no network"):
        run_tool(config)
    assert len(asked) == 1 and asked[0].endswith("/owner/unknown/resolve/main/config.json"), "asked once"


def test_impossible_devices():
    for key, value in (("device", "tpu"), ("gigabytes", 0.0)):
        config = composed("quickstart", "memory")
        setattr(config.memory, key, value)
        with pytest.raises(Refusal) as caught:
            validate(config)
        assert caught.value.key == f"memory.{key}"


def test_ruyi2_eval_measures_every_reported_score():
    """By one of the ways that the table of reported scores knows."""
    config, published = composed("ruyi2_eval"), published_scores()
    for name, by in published.measured_by.items():
        ways = [*by.get("harness", ()), *by.get("benchmark", ())]
        assert set(ways) & {*config.eval.harness.tasks, *config.eval.benchmarks}, name
    tasks = {task for by in published.unreported.values() for task in by["harness"]} & set(config.eval.harness.tasks)
    assert len(tasks) == len(published.unreported)
    config.model.base = None
    with pytest.raises(Refusal, match=r"model\.base"):
        validate(config)
