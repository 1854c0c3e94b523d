"""Every semantic refusal, and that what is right passes."""

import json
from pathlib import Path

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation import validate
from ruyi_rl.validation.known_family import known_family
from ruyi_rl.validation.model import check_exits
from ruyi_rl.validation.run import check_writable
from ruyi_rl.validation.training import check_batches


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> Path:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(*overrides: str):
    config = to_run_config(compose_config(list(overrides)))
    validate(config)
    return config


def refusal(*overrides: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)
    return caught.value


def model_folder(folder: Path, model_type: str = "qwen3", chat: str | None = "tokenizer_config", **config) -> str:
    """A model folder as far as validation looks into it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "num_hidden_layers": 6} | config))
    tokenizer = {"chat_template": "{{ messages }}"} if chat == "tokenizer_config" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if chat == "jinja":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    return str(folder)


CUSTOM = [
    "stage=grpo",
    "model=custom",
    "model.exits={small: 2, large: 5}",
    "grpo.trainer.per_device_train_batch_size=8",
]


@pytest.mark.parametrize("stage", ["init", "pretrain", "sft", "grpo", "pipeline"])
def test_the_default_passes_for_every_stage_and_leaves_nothing(stage, working_folder):
    fields = ["data=gsm8k"] if stage == "pretrain" else []
    checked(f"stage={stage}", *fields)
    assert not list(working_folder.iterdir())


@pytest.mark.parametrize("model", ["ruyi2_14b", "ruyi_7b", "qwen3_0p6b"])
@pytest.mark.parametrize("processes", [1, 8])
def test_shipped_models_pass_with_their_batches(model, processes):
    checked("stage=grpo", f"model={model}", "data=gsm8k", f"num_processes={processes}")


@pytest.mark.parametrize("experiment", ["ruyi2_14b", "qwen3_0p6b_one_gpu"])
def test_shipped_experiments_pass(experiment):
    checked("stage=grpo", f"experiment={experiment}")


@pytest.mark.parametrize("data", ["gsm8k", "math"])
def test_tiny_passes_on_real_rows(data, shared_data):
    checked("stage=grpo", f"data={data}", f"data.path={shared_data / data}")


REFUSED = {
    "stage.name=grop": ("stage", "'grpo'"),
    "stages=[init,stf,grpo]": ("stages", "'sft'"),
    "stages=[init,sft,sft,grpo]": ("stages", "twice"),
    "stages=[sft,grpo]": ("stages", "init"),
    "num_processes=0": ("num_processes", "1 or more"),
    "watchdog_minutes=-1": ("watchdog_minutes", "0 or more"),
    "watchdog_minutes=nan": ("watchdog_minutes", "0 or more"),
    "max_skipped_updates=-1": ("max_skipped_updates", "0 or more"),
    "name=' '": ("name", "blank"),
    "rollout.backend=vlm": ("rollout.backend", "'vllm'"),
    "rollout.batch_size=0": ("rollout.batch_size", "1 or more"),
    "run_dir=/proc/nowhere/run": ("run_dir", "/proc"),
    # The model.
    "model.dtype=float23": ("model.dtype", "'float32'"),
    "model.architecture=qwen4": ("model.architecture", "'qwen"),
    "model.scratch.hiden_size=64": ("model.scratch.hiden_size", "'hidden_size'"),
    "model.scratch.hidden_size=64.5": ("model.scratch.hidden_size", "int"),
    "model.scratch.hidden_size=0": ("model.scratch.hidden_size", "1 or more"),
    "model.scratch.num_key_value_heads=3": ("model.scratch.num_key_value_heads", "4"),
    "~model.scratch.num_hidden_layers": ("model.base", "num_hidden_layers"),
    "model.base=./missing": ("model.base", "'./missing'"),
    "model.base=/missing/model": ("model.base", "'/missing/model'"),
    "start_from=missing": ("start_from", "'missing'"),
    # Exits.
    "model.exits={}": ("model.exits", "no exit"),
    "model.exits={a: 1, b: 3}": ("model.exits", "must be at 4"),
    "model.exits={a: 1, b: 6}": ("model.exits", "out of range"),
    "model.exits={a: -1, b: 4}": ("model.exits", "out of range"),
    "model.exits={a: 1, b: 1, c: 4}": ("model.exits", "repeated"),
    "model.exits={a: 3, b: 1, c: 4}": ("model.exits", "increase"),
    # Exits chosen.
    "grpo.exits=[smal]": ("grpo.exits", "small, medium, large"),
    "grpo.exits=[small,small]": ("grpo.exits", "twice"),
    "grpo.exits=[]": ("grpo.exits", "at least one"),
    "sft.exits=[smal]": ("sft.exits", "small, medium, large"),
    "sft.trainer.neftune_noise_alpha=5": ("sft.trainer.neftune_noise_alpha", "sft.packed=false"),
    "grpo.exit_weights={smal: 1}": ("grpo.exit_weights", "small, medium, large"),
    "grpo.exit_weights={small: -1}": ("grpo.exit_weights.small", "0 or more"),
    "sft.loss_weights.start={smal: 1}": ("sft.loss_weights.start", "small, medium, large"),
    "sft.loss_weights.end={smal: 1}": ("sft.loss_weights.end", "small, medium, large"),
    "sft.loss_weights.end={small: -1}": ("sft.loss_weights.end.small", "0 or more"),
    "sft.loss_weights.start={small: 0, medium: 0, large: 0}": ("sft.loss_weights.start", "above 0"),
    "sft.loss_weights.preset=unifrm": ("sft.loss_weights.preset", "'uniform'"),
    "sft.loss_weights.schedule=cosin": ("sft.loss_weights.schedule", "'cosine'"),
    "sft.stage_two.replay=1.0": ("sft.stage_two.replay", "below 1"),
    "sft.stage_two.replay=-0.1": ("sft.stage_two.replay", "below 1"),
    "sft.stage_two.trainer.max_steps=3": ("sft.stage_two.data", "not given"),
    "grpo.advantage.scale=grup": ("grpo.advantage.scale", "'group'"),
    # Numbers.
    "grpo.trainer.num_generations=1": ("grpo.trainer.num_generations", "2 or more"),
    "grpo.trainer.num_generations=null": ("grpo.trainer.num_generations", "2 or more"),
    "grpo.trainer.temperature=0.0": ("grpo.trainer.temperature", "above 0"),
    "grpo.trainer.max_completion_length=0": ("grpo.trainer.max_completion_length", "1 or more"),
    "grpo.trainer.learning_rate=-1.0": ("grpo.trainer.learning_rate", "0 or more"),
    "grpo.trainer.per_device_train_batch_size=0": ("grpo.trainer.per_device_train_batch_size", "1 or more"),
    "sft.trainer.gradient_accumulation_steps=0": ("sft.trainer.gradient_accumulation_steps", "1 or more"),
    "sft.trainer={bf16: true, fp16: true}": ("sft.trainer.fp16", "bf16"),
    # What TRL's trainers take, but a family's do not.
    "grpo.trainer.cast_lm_head_to_fp32=true": ("grpo.trainer.cast_lm_head_to_fp32", "model.dtype"),
    "grpo.trainer.cache_implementation=static": ("grpo.trainer.cache_implementation", "rollout"),
    "grpo.trainer.use_transformers_continuous_batching=true": (
        "grpo.trainer.use_transformers_continuous_batching",
        "rollout.batch_size",
    ),
    "grpo.trainer.use_transformers_paged=true": ("grpo.trainer.use_transformers_paged", "rollout.batch_size"),
    "grpo.trainer.generation_kwargs={top_k: 3}": ("grpo.trainer.generation_kwargs", "top_k"),
    "grpo.trainer.use_adaptive_entropy=true": ("grpo.trainer.use_adaptive_entropy", "entropy_coef"),
    "grpo.trainer.num_generations_eval=1": ("grpo.trainer.num_generations_eval", "evaluation.samples"),
    "grpo.trainer.eval_strategy=steps": ("grpo.trainer.eval_strategy", "evaluation.problems"),
    "sft.trainer.eval_strategy=epoch": ("sft.trainer.eval_strategy", "evaluation.problems"),
    "sft.trainer.eval_on_start=true": ("sft.trainer.eval_on_start", "evaluation.problems"),
    "sft.trainer.save_steps=0": ("sft.trainer.save_steps", "share of all steps"),
    "grpo.trainer.save_steps=-2": ("grpo.trainer.save_steps", "share of all steps"),
    "grpo.trainer.max_steps=-3": ("grpo.trainer.max_steps", "1 or more"),
    "sft.trainer.save_total_limit=0": ("sft.trainer.save_total_limit", "1 or more"),
    "sft.trainer.load_best_model_at_end=true": ("sft.trainer.load_best_model_at_end", "keep_best=exit|mean"),
    "grpo.trainer.push_to_hub=true": ("grpo.trainer.push_to_hub", "stage=export"),
    "sft.trainer.save_only_model=true": ("sft.trainer.save_only_model", "optimiser's state"),
    "grpo.trainer.ignore_data_skip=true": ("grpo.trainer.ignore_data_skip", "goes on with the rows"),
    "sft.trainer.label_smoothing_factor=0.1": ("sft.trainer.label_smoothing_factor", "loss_weights"),
    "sft.trainer.loss_type=dft": ("sft.trainer.loss_type", "nll"),
    "grpo.exit_weights={small: 0, medium: 0, large: 0}": ("grpo.exit_weights", "above 0"),
    "grpo={exits: [small], exit_weights: {small: 0}}": ("grpo.exit_weights", "above 0"),
    "grpo={trainer: {multi_objective_aggregation: normalize_then_sum}, advantage: {scale: none}}": (
        "grpo.advantage.scale",
        "sum_then_normalize",
    ),
    "grpo={trainer: {multi_objective_aggregation: sum_then_normalize}}||reward.scale=normalize_then_sum": (
        "reward.scale",
        "contradicts grpo.trainer.multi_objective_aggregation",
    ),
    "grpo.advantage.scale=none||reward.scale=normalize_then_sum": ("grpo.advantage.scale", "under reward.scale"),
    "reward.clip=[0,1]||reward.scale=normalize_then_sum": ("reward.clip", "functions.<name>.clip"),
    "reward.functions.math_answer.timeout=0": ("reward.functions.math_answer.timeout", "above 0"),
    "reward.functions.math_answer.gate=format": ("reward.functions.math_answer.gate", "no other function"),
    "evaluation.problems=-1": ("evaluation.problems", "0"),
    "evaluation.samples=0": ("evaluation.samples", "1 or more"),
    "evaluation.temperature=0": ("evaluation.temperature", "above 0"),
    "evaluation.max_new_tokens=0": ("evaluation.max_new_tokens", "1 or more"),
    "grpo.token_budget=0": ("grpo.token_budget", "0 is not possible (1 or more tokens, or null)"),
    "grpo.token_budget=-4096": ("grpo.token_budget", "-4096"),
    "grpo.token_budget=4096||grpo.trainer.top_entropy_quantile=0.2": ("grpo.token_budget", "top_entropy_quantile=0.2"),
    # Batches: 3 exits x 8 samples = 24 rows a prompt.
    "grpo.trainer.per_device_train_batch_size=100": ("grpo.trainer.per_device_train_batch_size", "99 or 102"),
    "grpo.trainer.per_device_train_batch_size=99": ("grpo.trainer.per_device_train_batch_size", "96 or 120"),
    "grpo.trainer.num_generations=7": ("grpo.trainer.per_device_train_batch_size", "567 or 588"),
    "grpo.trainer.generation_batch_size=1000": ("grpo.trainer.generation_batch_size", "576 or 1152"),
    "grpo.trainer={generation_batch_size: 576, steps_per_generation: 1}": (
        "grpo.trainer.generation_batch_size",
        "one of the two",
    ),
    # DeepSpeed.
    "deepspeed.mode=zero4": ("deepspeed.mode", "zero"),
    "deepspeed.config.train_batch_size=8": ("deepspeed.config.train_batch_size", "per_device_train_batch_size"),
    "deepspeed.config.gradient_clipping=1.0": ("deepspeed.config.gradient_clipping", "max_grad_norm"),
    "deepspeed.config.gradient_accumulation_steps=2": (
        "deepspeed.config.gradient_accumulation_steps",
        "trainer: gradient_accumulation_steps",
    ),
    "deepspeed.config.optimizer.type=Adam": ("deepspeed.config.optimizer", "optim"),
    "deepspeed.config.scheduler.type=WarmupLR": ("deepspeed.config.scheduler", "lr_scheduler_type"),
    "deepspeed.config.zero_optimization.stage=3": ("deepspeed.config.zero_optimization.stage", "deepspeed=zero"),
    "deepspeed={mode: 'off', config: {zero_allow_untested_optimizer: true}}": ("deepspeed.config", "off"),
    # Data and rewards, whose own checks are tested beside them.
    "data.max_prompt_tokens=0": ("data.max_prompt_tokens", "1"),
    "data.source=row": ("data.source", "'rows'"),
    "reward.functions.math_answer.path=missing.py": ("reward.functions.math_answer.path", "missing.py"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused(override):
    key, hint = REFUSED[override]
    caught = refusal("stage=grpo", *override.split("||"))
    assert caught.key == key
    assert hint in str(caught)


def test_a_base_without_an_owner_is_a_missing_folder():
    caught = refusal("stage=init", "model=custom", "model.base=nonsense", "model.exits={a: 0, b: 1}")
    assert caught.key == "model.base" and "'nonsense' does not exist" in str(caught)


def test_rows_lack_what_a_reward_reads(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 30)
    caught = refusal("stage=grpo", "data=rows", f"data.path={rows}")
    assert caught.key == "data.fields.answer" and "line 1" in str(caught)
    checked("stage=sft", "data=rows", f"data.path={rows}")


def test_fewer_exits_change_the_batch_arithmetic():
    checked("stage=grpo", "grpo.exits=[small,medium]", "grpo.trainer.per_device_train_batch_size=16")
    assert "no multiple" in str(refusal("stage=grpo", "grpo.trainer.per_device_train_batch_size=16"))


def test_packed_and_padded_training_pass():
    budget = checked("stage=grpo", "grpo.token_budget=4096", "grpo.trainer.top_entropy_quantile=1.0").grpo
    assert budget.packed and budget.token_budget == 4096
    options = ["grpo.packed=false", "grpo.token_budget=4096", "grpo.trainer.top_entropy_quantile=0.2"]
    padded = checked("stage=grpo", *options, "sft.packed=false")
    assert not padded.grpo.packed and not padded.sft.packed


def test_what_means_nothing_for_a_family_passes_where_it_is_off():
    off = ["cast_lm_head_to_fp32=false", "generation_kwargs={}", "use_adaptive_entropy=false", "eval_strategy='no'"]
    checked("stage=grpo", *(f"grpo.trainer.{value}" for value in off), "grpo.exit_weights={small: 0}")
    checked("stage=sft", "sft.trainer.loss_type=nll", "sft.trainer.label_smoothing_factor=0.0")
    one_exit = ["grpo.exits=[small]", "grpo.trainer.per_device_train_batch_size=8"]
    checked("stage=grpo", *one_exit, "grpo.trainer.use_adaptive_entropy=true")
    checked("stage=grpo", "grpo.trainer.multi_objective_aggregation=normalize_then_sum")
    both = [f"{key}=normalize_then_sum" for key in ("grpo.trainer.multi_objective_aggregation", "reward.scale")]
    checked("stage=grpo", *both)
    checked("stage=grpo", "reward.scale=sum_then_normalize", "reward.clip=[0,1]")


def test_pretraining_has_no_second_stage():
    for override in ("pretrain.stage_two.data.path=rows.jsonl", "pretrain.stage_two.trainer.max_steps=3"):
        caught = refusal("stage=pretrain", "data=gsm8k", override)
        assert caught.key == "pretrain.stage_two" and "sft.stage_two" in str(caught)
    assert refusal("stage=pretrain", "data=gsm8k", "pretrain.trainer.loss_type=dft").key == "pretrain.trainer.loss_type"


@pytest.mark.parametrize("stage", ["init", "sft"])
def test_what_only_a_later_stage_needs_is_not_looked_at(stage):
    checked(f"stage={stage}", "grpo.trainer.num_generations=1", "grpo.exits=[nobody]")
    refusal("stage=pipeline", "grpo.trainer.num_generations=1")


def test_overview_is_never_refused_for_its_values():
    checked("stage=overview", "grpo.trainer.num_generations=1", "model.exits={}")


def test_null_loss_weight_preset_and_zero_weights_of_some_exits_pass():
    checked(
        "stage=sft",
        "sft.loss_weights.preset=null",
        "sft.loss_weights.schedule=cosine",
        "sft.loss_weights.end={small: 0}",
    )


# The batch arithmetic against counting rows: micro-batches with all exits alike, ranks with whole prompts.
@pytest.mark.parametrize("exits", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_are_accepted_exactly_where_rows_fall_into_whole_prompts(exits, world_size):
    outcomes = set()
    for size in range(1, 31):
        for steps in (1, 2, 4, 6):
            fields = {"per_device_train_batch_size": size, "steps_per_generation": steps, "num_generations": 4}
            whole = size % exits == 0 and (size * steps) % (exits * 4) == 0
            try:
                check_batches(fields, exits, world_size)
                accepted = True
            except Refusal:
                accepted = False
            assert accepted == whole, (size, steps)
            outcomes.add(accepted)
            generation = {"per_device_train_batch_size": size, "num_generations": 4}
            generation["generation_batch_size"] = size * steps * world_size
            if whole:
                check_batches(generation, exits, world_size)
            else:
                with pytest.raises(Refusal):
                    check_batches(generation, exits, world_size)
    assert outcomes == {True, False}


def test_accumulation_makes_the_generation_batch_where_nothing_else_is_given():
    check_batches({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}, 3, 1)
    with pytest.raises(Refusal, match="24"):
        check_batches({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 3}, 3, 1)


def test_trls_defaults_count_where_a_field_is_not_given():
    check_batches({}, 1, 1)
    with pytest.raises(Refusal, match="8"):
        check_batches({}, 3, 1)


def test_unknown_number_of_exits_still_asks_for_whole_groups():
    check_batches({"per_device_train_batch_size": 8}, None, 1)
    with pytest.raises(Refusal):
        check_batches({"per_device_train_batch_size": 12}, None, 1)


def test_the_launchers_world_size_counts(monkeypatch):
    fields = ["grpo.trainer.generation_batch_size=1152", "stage=grpo"]
    checked(*fields, "num_processes=2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "4 ranks" in str(refusal(*fields))


@pytest.mark.parametrize(
    ("exits", "layers"),
    [({"a": 0}, 1), ({"a": 0, "b": 1}, 2), ({"a": 2, "b": 21, "c": 39}, 40), ({"a": 3, "b": 9}, None)],
)
def test_exits_that_pass(exits, layers):
    check_exits(exits, layers)


@pytest.mark.parametrize("exits", [{"a": 3, "b": 3}, {"a": 3, "b": 2}, {"a": -1}, {}])
def test_exits_are_checked_even_where_the_depth_is_unknown(exits):
    with pytest.raises(Refusal):
        check_exits(exits, None)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("chat", ["tokenizer_config", "jinja"])
def test_local_bases_that_pass(tmp_path, model_type, chat):
    base = model_folder(tmp_path / "base", model_type, chat)
    config = checked(*CUSTOM, f"model.base={base}")
    assert known_family(config).exits == {"small": 2, "large": 5}
    checked(*CUSTOM, "model.base=base")


@pytest.mark.parametrize("model_type", ["ruyi_qwen2", "ruyi_qwen3", "ee_qwen3"])
def test_local_families_bring_their_exits(tmp_path, model_type):
    base = model_folder(tmp_path / "published", model_type, early_exit_points=[2, 5])
    fields = ["stage=grpo", "model=custom", f"model.base={base}", "grpo.trainer.per_device_train_batch_size=8"]
    assert known_family(checked(*fields)).exits == {"exit2": 2, "exit5": 5}
    checked(*fields, "model.exits={exit2: 2, exit5: 5}")
    assert refusal(*fields, "model.exits={a: 2, b: 5}").key == "model.exits"
    assert "exit2" in str(refusal(*fields, "grpo.exits=[exit1]"))
    named = model_folder(tmp_path / "named", model_type, early_exit_points=[2, 5], exit_names=["1.7B", "8B"])
    assert known_family(checked(*fields, f"model.base={named}", "grpo.exits=[1.7B]")).exits == {"1.7B": 2, "8B": 5}


def test_hub_ids_are_left_to_the_hub():
    config = checked("stage=grpo", "model=custom", "model.base=someone/some-family", "data=gsm8k")
    assert known_family(config) is None
    assert refusal("stage=grpo", "model=custom", "model.base=a/b", "model.exits={a: 3, b: 3}").key == "model.exits"


def test_bases_that_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    model_folder(tmp_path / "llama", "llama")
    model_folder(tmp_path / "deep", num_hidden_layers=8)
    (model := Path(model_folder(tmp_path / "broken"))).joinpath("config.json").write_text("{")
    for base, hint in (
        ("empty", "config.json"),
        ("file", "does not exist"),
        ("./llama", "'llama'"),
        ("llama/", "'llama'"),
        ("deep", "must be at 7"),
        ("broken", "not JSON"),
        ("llama/missing", "does not exist"),
        ("a/b/c", "does not exist"),
    ):
        caught = refusal(*CUSTOM, f"model.base={base}")
        assert caught.key in ("model.base", "model.exits")
        assert hint in str(caught), base
    assert model.is_dir()
    assert refusal("stage=grpo", "model=custom").key == "model.base"


def test_start_from(tmp_path):
    model_folder(tmp_path / "stock")
    model_folder(tmp_path / "family", "ruyi_qwen3", early_exit_points=[0, 5])
    batch = "grpo.trainer.per_device_train_batch_size=16"
    config = checked("stage=grpo", "start_from=family", batch)
    assert known_family(config).exits == {"exit0": 0, "exit5": 5}
    assert "no family" in str(refusal("stage=grpo", "start_from=stock", batch))
    assert refusal("stage=init", "start_from=family").key == "start_from"


def test_chat_templates_are_needed_by_the_stages_that_render_chats(tmp_path):
    base = model_folder(tmp_path / "base", chat=None)
    fields = ["model=custom", "model.exits={small: 2, large: 5}", f"model.base={base}", "data=gsm8k"]
    batch = "grpo.trainer.per_device_train_batch_size=8"
    for stage in ("sft", "grpo"):
        caught = refusal(f"stage={stage}", batch, *fields)
        assert caught.key == "model.base" and "chat template" in str(caught) and "chat_template.jinja" in str(caught)
    checked("stage=init", *fields)
    checked("stage=pretrain", *fields)
    checked("stage=grpo", batch, "sft.trainer.chat_template_path=mine.jinja", *fields)
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    assert "no tokenizer" in str(refusal("stage=sft", *fields))


def test_rows_are_looked_at(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1", "answer": "2", "completion": "2"}\n{"prompt": \n')
    caught = refusal("stage=grpo", "data=rows", "data.path=rows.jsonl")
    assert "2" in str(caught) and "rows.jsonl" in str(caught)
    assert refusal("stage=grpo", "data=rows").key == "data.path"
    second = refusal("stage=sft", "sft.stage_two.data.path=missing.jsonl")
    assert second.key == "sft.stage_two.data.path"


def test_writable(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal):
        check_writable(tmp_path / "file" / "run")
