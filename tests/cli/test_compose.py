"""Composition: every choice, types, what the command line may set, and the run's default name."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ruyi_rl.cli.compose import ConfigSource, compose_config, conf_dir, to_run_config, working_conf
from ruyi_rl.config import RunConfig
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

SHIPPED = ConfigSource()
CHOICES = SHIPPED.choices()
PAIRS = [(model, data) for model in CHOICES["model"] for data in CHOICES["data"]]


def composed(*overrides: str, source: ConfigSource = SHIPPED) -> RunConfig:
    return to_run_config(compose_config(list(overrides), source))


def own_folder(tmp_path: Path, group: str, choice: str, text: str) -> ConfigSource:
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    (tmp_path / group / f"{choice}.yaml").write_text(text)
    return ConfigSource(tmp_path)


@pytest.mark.parametrize(("model", "data"), PAIRS)
def test_every_model_composes_with_every_data_set(model, data):
    config = composed(f"model={model}", f"data={data}", "stage=grpo")
    assert isinstance(config, RunConfig)
    assert (config.model.name, config.data.name, config.stage.name) == (model, data, "grpo")
    assert config.name == f"{model}-{data}"
    assert config.run_dir == f"runs/{model}-{data}"


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in CHOICES for choice in CHOICES[group] if group != "preset"]
)
def test_every_choice_composes_and_its_file_opens_with_a_line_about_it(group, choice):
    config = composed(f"{group}={choice}")
    if group in ("stage", "model", "data", "reward"):
        assert getattr(config, group).name == choice
    lines = SHIPPED.file(group, choice).read_text().splitlines()
    assert any(line.startswith("# ") and "@package" not in line for line in lines[:2])


def test_every_preset_belongs_to_a_model_and_a_data_set_and_is_applied():
    names = {f"{model}_{data}" for model, data in PAIRS}
    assert set(CHOICES["preset"]) <= names
    for preset in CHOICES["preset"]:
        model, _, data = preset.partition("_")
        stored = OmegaConf.load(conf_dir() / "preset" / f"{preset}.yaml")
        config = compose_config([f"model={model}", f"data={data}"])
        assert OmegaConf.merge(config.grpo.trainer, stored.grpo.trainer) == config.grpo.trainer
        assert stored.grpo.trainer


def test_tiny_presets_give_laptop_values_and_real_models_the_root_files():
    tiny, real = composed(), composed("model=ruyi2_14b", "data=gsm8k")
    assert tiny.sft.trainer["learning_rate"] == 3e-3 and real.sft.trainer["learning_rate"] == 1e-5
    assert tiny.sft.trainer["bf16"] is False
    assert tiny.grpo.trainer["per_device_train_batch_size"] == 576
    assert real.grpo.trainer["learning_rate"] == 1e-6
    assert real.model.exits == {"1.7B": 2, "8B": 21, "14B": 39}


def test_what_depends_on_the_machine_or_the_length_of_the_run_is_left_to_the_trainers_arguments():
    for model in ("custom", "qwen3_0p6b", "ruyi2_14b", "ruyi_7b"):
        config = composed(f"model={model}", "data=gsm8k")
        for block in (config.pretrain, config.sft, config.grpo):
            assert not {"bf16", "save_steps", "save_total_limit", "logging_steps"} & set(block.trainer), model


def test_experiment_overrides_groups_and_the_command_line_overrides_the_experiment():
    config = composed("experiment=ruyi2_14b")
    assert (config.model.name, config.data.name, config.deepspeed.mode) == ("ruyi2_14b", "gsm8k", "zero3")
    assert composed("+experiment=ruyi2_14b") == config
    assert composed("experiment=ruyi2_14b", "deepspeed=zero2").deepspeed.mode == "zero2"


@pytest.mark.parametrize(
    ("override", "expected"),
    [("1e-6", 1e-6), ("0.00001", 1e-5), ("1", 1), ("2.5E-4", 2.5e-4)],
)
def test_learning_rates_arrive_as_numbers(override, expected):
    for block in ("pretrain.trainer", "sft.trainer", "sft.stage_two.trainer", "grpo.trainer"):
        config = compose_config([f"{block}.learning_rate={override}"])
        value = OmegaConf.select(config, f"{block}.learning_rate")
        assert value == expected and isinstance(value, type(expected))


def test_numbers_of_the_shipped_files_are_numbers():
    for path in conf_dir().rglob("*.yaml"):
        for name, value in _leaves(OmegaConf.to_container(OmegaConf.load(path))):
            if name in ("learning_rate", "temperature", "beta", "warmup_steps", "weight"):
                assert isinstance(value, (int, float)), (path, name)


def _leaves(tree):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield name, value


def test_new_keys_of_open_blocks_need_no_plus():
    config = composed(
        "grpo.trainer.gradient_checkpointing_kwargs.use_reentrant=false",
        "deepspeed.config.zero_optimization.offload_optimizer.device=cpu",
        "reward.functions.mine.path=mine.py",
        "grpo.exit_weights={small: 2}",
    )
    assert config.grpo.trainer["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert config.deepspeed.config == {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert (config.reward.functions["mine"].path, config.reward.functions["mine"].weight) == ("mine.py", 1.0)
    assert config.grpo.exit_weights == {"small": 2.0}


def test_exits_given_as_a_dictionary_replace_those_of_the_model():
    assert composed("model.exits={1.7B: 2, large: 5}").model.exits == {"1.7B": 2, "large": 5}
    assert composed("model.exits={}").model.exits == {}
    assert composed("model.exits.tiny=0").model.exits == {"small": 1, "medium": 2, "large": 4, "tiny": 0}


def test_a_set_key_can_be_taken_back():
    assert "max_steps" in composed().grpo.trainer
    assert "max_steps" not in composed("~grpo.trainer.max_steps").grpo.trainer


def test_second_stage_data_from_keys_and_from_a_choice():
    by_key = composed("sft.stage_two.data.path=rows.jsonl", "sft.stage_two.data.limit=10").sft.stage_two.data
    assert (type(by_key), by_key.path, by_key.limit) == (DataOptions, "rows.jsonl", 10)
    by_choice = composed("data@sft.stage_two.data=math", "sft.stage_two.data.path=here").sft.stage_two.data
    assert (by_choice.name, by_choice.path) == ("math", "here")
    assert composed().sft.stage_two.data is None


def test_home_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = composed("run_dir='~/out/${name}'", "start_from='~/family'", "data=rows", "data.path='~/rows.jsonl'")
    assert config.run_dir.startswith("/home/someone/out/tiny-rows")
    assert (config.start_from, config.data.path) == ("/home/someone/family", "/home/someone/rows.jsonl")


def test_name_is_shared_by_stages_and_by_what_does_not_change_results():
    names = {
        composed(*overrides).name
        for overrides in (
            [],
            ["stage=sft"],
            ["stage=grpo"],
            ["stage=grpo", "fresh=true"],
            ["stage=grpo", "num_processes=2"],
            ["stage=grpo", "run_dir=elsewhere"],
            ["stage=grpo", "grpo.trainer.learning_rate=2e-4"],
            ["stage=grpo", "grpo.trainer.save_steps=7"],
            ["stage=grpo", "grpo.rollout_only=true"],
            ["stage=grpo", "+rollout.workers.small=2", "rollout.timeout=30"],
        )
    }
    assert names == {"tiny-arithmetic"}


def test_a_tool_finds_the_run_whatever_it_is_asked_for():
    tool = ["stage=serve", "launch=true", "serve.port=1", "serve.engine.max_model_len=64", "generate.prompt=x"]
    tool += ["push_to=me/model", "export.exit=[small,large]", "export.check=logits"]
    assert composed(*tool).name == composed().name
    assert composed(*tool, "model.exits.small=0").name == composed("model.exits.small=0").name


def test_name_differs_where_a_value_that_decides_results_differs():
    changes = [
        ["seed=2"],
        ["seed=3"],
        ["grpo.trainer.learning_rate=1e-4"],
        ["sft.trainer.learning_rate=1e-4"],
        ["~grpo.trainer.max_steps"],
        ["reward=math_format"],
        ["deepspeed=zero2"],
        ["rollout=transformers"],
        ["rollout.engine={quantization: fp8}"],
        ["start_from=elsewhere"],
        ["model.exits={a: 1, b: 5}"],
        ["stages=[init,pretrain,sft,grpo]"],
        ["data=gsm8k", "data.path=here"],
    ]
    names = [composed(*change).name for change in changes]
    assert len(set(names)) == len(changes)
    assert all(name.startswith(("tiny-arithmetic-", "tiny-gsm8k-")) for name in names)
    assert names == [composed(*change).name for change in changes]
    both = ["seed=2", "grpo.trainer.learning_rate=1e-4"]
    assert composed(*both).name == composed(*reversed(both)).name


def test_name_of_an_experiment_is_its_own():
    assert composed("experiment=ruyi2_14b").name == "ruyi2_14b"
    assert composed("experiment=ruyi2_14b", "model=tiny").name.startswith("ruyi2_14b-")


def test_explicit_name_wins():
    config = composed("name=mine", "seed=2")
    assert (config.name, config.run_dir) == ("mine", "runs/mine")
    assert composed("name=seed${seed}", "seed=7").run_dir == "runs/seed7"


def test_own_folder_adds_choices(tmp_path):
    text = "# @package _global_\ndefaults:\n  - override /data: gsm8k\nseed: 11\n"
    source = own_folder(tmp_path, "experiment", "mine", text)
    config = composed("experiment=mine", source=source)
    assert (config.seed, config.data.name, config.name) == (11, "gsm8k", "mine")
    assert "mine" in source.choices()["experiment"]


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("seeed: 1", "seeed", "'seed'"),
        ("grpo: {trainr: {}}", "grpo.trainr", "'grpo.trainer'"),
        ("seed: abc", "seed", "int"),
        ("grpo: {trainer: {learning_rat: 1}}", "grpo.trainer.learning_rat", "'grpo.trainer.learning_rate'"),
        ("grpo: {trainer: {learning_rate: high}}", "grpo.trainer.learning_rate", "float"),
    ],
)
def test_files_are_refused_as_the_command_line_is(tmp_path, text, key, hint):
    source = own_folder(tmp_path, "experiment", "mine", f"# @package _global_\n{text}\n")
    with pytest.raises(Refusal) as refusal:
        composed("experiment=mine", source=source)
    assert refusal.value.key == key
    assert hint in str(refusal.value)


@pytest.mark.parametrize("text", ["a: {b", "[1, 2]"])
def test_files_that_hold_no_block_are_refused(tmp_path, text):
    with pytest.raises(Refusal, match="mine"):
        composed("experiment=mine", source=own_folder(tmp_path, "experiment", "mine", text))


MINE = "name: mine\nfunctions:\n  mine: {path: mine.py}\n"


def in_working_folder(folder: Path, group: str, choice: str, text: str) -> None:
    (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
    (folder / "conf" / group / f"{choice}.yaml").write_text(text)


def test_conf_in_the_working_folder_adds_choices(tmp_path, monkeypatch):
    folder = tmp_path / "it's, a [folder]"
    in_working_folder(folder, "reward", "mine", MINE)
    monkeypatch.chdir(folder)
    source = ConfigSource(working=working_conf())
    assert composed("reward=mine", source=source).reward.functions["mine"].path == "mine.py"
    assert source.choices()["reward"] == sorted([*CHOICES["reward"], "mine"])
    with pytest.raises(Refusal, match="'mine' is no choice"):
        composed("reward=mine")


def test_conf_in_the_working_folder_is_no_root_and_has_no_groups_of_its_own(tmp_path, monkeypatch):
    in_working_folder(tmp_path, "optimizer", "adam", "lr: 1\n")
    (tmp_path / "conf" / "config.yaml").write_text("db: mysql\nseed: 77\n")
    monkeypatch.chdir(tmp_path)
    source = ConfigSource(working=working_conf())
    assert composed(source=source) == composed()
    assert source.choices() == CHOICES
    with pytest.raises(Refusal, match="no such key"):
        composed("optimizer=adam", source=source)


def test_a_file_that_a_shipped_one_hides_is_refused_once_it_is_chosen(tmp_path, monkeypatch):
    in_working_folder(tmp_path, "reward", "math", MINE)
    in_working_folder(tmp_path, "reward", "format", (conf_dir() / "reward" / "format.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    source = ConfigSource(working=working_conf())
    assert composed("reward=format", source=source) == composed("reward=format")
    assert composed(source=source).reward == composed().reward
    with pytest.raises(Refusal, match=r"conf/reward/math.yaml would not be read \(rename") as refusal:
        composed("reward=math", source=source)
    assert refusal.value.key == "reward"


def test_a_folder_that_is_searched_anyway_is_not_searched_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(conf_dir().parent)
    assert working_conf() is None
    in_working_folder(tmp_path, "reward", "mine", MINE)
    monkeypatch.chdir(tmp_path)
    assert working_conf() == tmp_path / "conf"
    assert working_conf(tmp_path / "conf") is None
    monkeypatch.chdir(tmp_path / "conf")
    assert working_conf() is None


def test_a_named_folder_goes_before_the_working_folders(tmp_path, monkeypatch):
    in_working_folder(tmp_path, "reward", "mine", MINE)
    monkeypatch.chdir(tmp_path)
    named = own_folder(tmp_path / "named", "reward", "mine", MINE.replace("mine.py", "named.py")).extra
    source = ConfigSource(named, working=working_conf(named))
    assert composed("reward=mine", source=source).reward.functions["mine"].path == "named.py"
