"""Expansion and compression: what is refused before anything is loaded, and what the stages before make of a family."""

import json
from pathlib import Path

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.family.options import CompressOptions, ExpandOptions
from ruyi_rl.pipeline import chain
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.servers import addresses
from ruyi_rl.training.options import SFTOptions
from ruyi_rl.validation import validate
from ruyi_rl.validation.expansion import compressed, expanded, families
from ruyi_rl.validation.known_family import KnownFamily, described_family, known_family
from ruyi_rl.validation.training import trained_exits

DAE = "stages=[init,sft,expand,expanded_sft,grpo,compress,eval]"
PLAIN = KnownFamily({"small": 1, "large": 4}, {"small": 0, "large": 0})
ONE_EXIT = "grpo.trainer.per_device_train_batch_size=8"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> Path:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*overrides: str):
    return to_run_config(compose_config(list(overrides)))


def refusal(*overrides: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        validate(config_of(*overrides))
    assert "\n" not in str(caught.value)
    return caught.value


def family_folder(folder: Path, **config) -> str:
    """A family of two exits as far as validation looks into it."""
    folder.mkdir()
    stored = {"model_type": "ruyi_qwen3", "early_exit_points": [1, 4], "exit_names": ["small", "large"]}
    (folder / "config.json").write_text(json.dumps(stored | config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return str(folder)


@pytest.mark.parametrize("stage", ["expand", "expanded_sft", "grpo", "compress", "eval", "pipeline"])
def test_the_default_passes_for_every_stage_of_dae(stage, working_folder):
    validate(config_of(f"stage={stage}", DAE))
    validate(config_of(f"stage={stage}", DAE, "grpo.train_only=expansion", ONE_EXIT))
    assert not list(working_folder.iterdir())


def test_pretraining_after_an_expansion_passes(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one and two", "prompt": "1", "completion": "2"}\n' * 30)
    rows = ["data=rows", "data.path=rows.jsonl", "stages=[init,expand,expanded_pretrain]"]
    validate(config_of("stage=pipeline", *rows))
    assert refusal("stage=pipeline", *rows, "expanded_pretrain.stage_two.trainer.max_steps=3").key == (
        "expanded_pretrain.stage_two"
    )


@pytest.mark.parametrize("model", ["ruyi2_14b", "ruyi_7b", "qwen3_0p6b"])
def test_shipped_models_pass_with_an_expansion(model):
    shipped = [f"model={model}", "data=gsm8k", DAE, "stage=pipeline"]
    validate(config_of(*shipped, "grpo.train_only=expansion", ONE_EXIT))
    assert refusal(*shipped, "expand.exit=nobody").key == "expand.exit"


REFUSED = {
    # The chain.
    "stage=compress": ("stages", "stages=[init,sft,expand,grpo,compress]"),
    "stage=expanded_sft": ("stages", "stages=[init,sft,expand,expanded_sft]"),
    "stage=expanded_pretrain": ("stages", "no exit is expanded before expanded_pretrain"),
    "stage=pipeline stages=[init,sft,expanded_sft,expand]": ("stages", "stages=[init,sft,expand,expanded_sft]"),
    "stage=pipeline stages=[init,sft,sft]": ("stages", "sft is named twice in ['init', 'sft', 'sft'] (after expand"),
    "stage=pipeline stages=[init,eval,sft]": ("stages", "eval leaves no family"),
    "stage=pipeline stages=[init,sft,expnd]": ("stages", "'expand'"),
    # expand.
    "stage=expand expand.exit=smal": ("expand.exit", "small, medium, large"),
    "stage=expand expand.blocks=0": ("expand.blocks", "0 is not possible (1 or more)"),
    "stage=expand expand.blocks=-1": ("expand.blocks", "1 or more"),
    "stage=expand expand.init=gausian": ("expand.init", "'gaussian'"),
    # compress.
    "DAE stage=compress compress.ratio=0": ("compress.ratio", "above 0, below 1"),
    "DAE stage=compress compress.ratio=1": ("compress.ratio", "above 0, below 1"),
    "DAE stage=compress compress.ratio=nan": ("compress.ratio", "above 0, below 1"),
    "DAE stage=compress compress.method=budgetted": ("compress.method", "'budgeted'"),
    "DAE stage=compress compress.calibration_rows=0": ("compress.calibration_rows", "1 or more"),
    "DAE stage=compress compress.max_length=0": ("compress.max_length", "1 or more"),
    "DAE stage=compress compress.batch_size=0": ("compress.batch_size", "1 or more"),
    "DAE stage=compress compress.recover_steps=-1": ("compress.recover_steps", "0 (no recovery)"),
    "DAE stage=compress compress.exit=medium": ("compress.exit", "medium has no expansion blocks (allowed: small)"),
    "DAE stage=compress compress.exit=smal": ("compress.exit", "small, medium, large"),
    "DAE stage=compress compress.data.path=missing.jsonl": ("compress.data.path", "missing.jsonl"),
    "DAE stage=compress compress.trainer.max_steps=3": ("compress.trainer.max_steps", "compress.recover_steps"),
    "DAE stage=compress compress.trainer.max_length=3": ("compress.trainer.max_length", "compress.max_length"),
    "DAE stage=compress compress.trainer.learning_rate=-1": ("compress.trainer.learning_rate", "0 or more"),
    "DAE stage=compress compress.trainer.loss_type=dft": ("compress.trainer.loss_type", "nll"),
    # train_only.
    "stage=sft sft.train_only=expansion": ("sft.train_only", "no exit has expansion blocks when sft begins"),
    "stage=sft sft.train_only=expansions": ("sft.train_only", "did you mean 'expansion'"),
    "stage=grpo grpo.train_only=expansion": ("grpo.train_only", "stage expand before grpo"),
    "stage=grpo grpo.train_only=all": ("grpo.train_only", "'all' is unknown"),
    "DAE stage=pipeline sft.train_only=expansion": ("sft.train_only", "when sft begins"),
    "DAE stage=expanded_sft expanded_sft.exits=[small,large]": ("expanded_sft.exits", "large has no expansion blocks"),
    "DAE stage=grpo grpo.train_only=expansion grpo.exits=[medium]": ("grpo.exits", "allowed: small"),
    "DAE stage=expanded_sft expanded_sft.loss_weights.start={large: 1}": ("expanded_sft.loss_weights.start", "small"),
    "DAE stage=expanded_sft expanded_sft.stage_two.data.path=none.jsonl": (
        "expanded_sft.stage_two.data.path",
        "none.jsonl",
    ),
    "DAE stage=grpo grpo.train_only=expansion grpo.exit_weights={small: 0}": ("grpo.exit_weights", "above 0"),
    "DAE stage=grpo grpo.train_only=expansion grpo.exit_weights={large: 1}": ("grpo.exit_weights", "small"),
    # eval.
    "stage=eval eval.exits=[smal]": ("eval.exits", "small, medium, large"),
    "stage=eval eval.exits=[]": ("eval.exits", "at least one"),
    "stage=eval evaluation.samples=0": ("evaluation.samples", "1 or more"),
    "stage=eval reward.functions.math_answer.path=missing.py": ("reward.functions.math_answer.path", "missing.py"),
    "DAE stage=compress reward.functions.math_answer.path=missing.py": (
        "reward.functions.math_answer.path",
        "missing.py",
    ),
    "start_from=family stage=eval rollout.batch_size=0": ("rollout.batch_size", "1 or more"),
    # A family that is there.
    "start_from=family stage=compress": ("start_from", "stage=expand start_from=family"),
    "start_from=family stage=expanded_sft": ("start_from", "no exit of family"),
    "start_from=expanded stage=expand": ("expand.exit", "small has 3 expansion blocks already (expand.again=true"),
    "start_from=expanded stage=grpo grpo.train_only=expansion grpo.exits=[large]": ("grpo.exits", "allowed: small"),
    "start_from=compressed stage=compress": ("compress.exit", "small is compressed already"),
    "start_from=compressed stage=compress compress.exit=small": ("compress.exit", "small is compressed already"),
    "start_from=compressed stage=expand expand.again=true": ("expand.exit", "small is compressed"),
    "model=custom model.base=expanded stage=expand": ("expand.exit", "already"),
    "model=custom model.base=family stage=compress": ("stages", "no exit is expanded"),
}


@pytest.fixture
def families_on_disk(tmp_path):
    family_folder(tmp_path / "family")
    family_folder(tmp_path / "expanded", expansion_blocks=[3, 0])
    ranks = {"model.expansions.0.2.self_attn.q_proj": 5, "lm_head.0": 7}
    family_folder(tmp_path / "compressed", expansion_blocks=[3, 0], factor_ranks=ranks)


@pytest.mark.parametrize("command", REFUSED)
def test_refused(command, families_on_disk):
    key, hint = REFUSED[command]
    words = [word for word in command.replace(": ", ":").split()]
    caught = refusal(*(DAE if word == "DAE" else word for word in words))
    assert caught.key == key
    assert hint in str(caught)


@pytest.mark.parametrize(
    "command",
    [
        "start_from=expanded stage=compress",
        "start_from=expanded stage=expanded_sft",
        "start_from=expanded stage=expand expand.again=true",
        "start_from=expanded stage=expand expand.exit=large",
        "start_from=family stage=expand expand.exit=large",
        "start_from=compressed stage=expand expand.exit=large",
        "start_from=compressed stage=eval eval.exits=[small]",
        "start_from=compressed stage=grpo grpo.train_only=expansion " + ONE_EXIT,
        "model=custom model.base=expanded stage=compress " + "grpo.trainer.per_device_train_batch_size=16",
        # A family on the hub may be expanded: only the stage itself can tell.
        "model=custom model.base=someone/family stage=compress grpo.trainer.per_device_train_batch_size=16",
        "model=custom model.base=someone/family stage=grpo grpo.train_only=expansion " + ONE_EXIT,
        "stage=compress " + DAE + " compress.calibration_rows=1 compress.ratio=0.999",
        "stage=eval evaluation.problems=0 reward.functions.math_answer.path=missing.py start_from=family",
    ],
)
def test_passes(command, families_on_disk):
    data = ["data=gsm8k"] if "someone/" in command else []
    validate(config_of(*command.split(), *data))


def test_eval_reads_rows_as_grpo_does_and_compress_as_sft(tmp_path, families_on_disk):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 30)
    rows = ["data=rows", "data.path=rows.jsonl", "start_from=expanded"]
    validate(config_of("stage=compress", *rows))
    assert refusal("stage=eval", *rows).key == "data.fields.answer"
    validate(config_of("stage=eval", *rows, "evaluation.problems=0"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 30)
    validate(config_of("stage=eval", *rows))
    assert refusal("stage=compress", *rows).key == "data.fields.completion"
    validate(config_of("stage=compress", "start_from=expanded", "compress.data.source=arithmetic"))
    (tmp_path / "texts.jsonl").write_text('{"text": "one and two"}\n' * 30)
    texts = ["start_from=expanded", "compress.data.path=texts.jsonl"]
    validate(config_of("stage=compress", *texts, "+compress.data.fields.text=text"))
    assert refusal("stage=compress", *texts).key == "compress.data.fields.prompt"


def test_a_chat_template_is_needed_by_what_renders_chats(tmp_path, families_on_disk):
    (tmp_path / "expanded" / "tokenizer_config.json").write_text("{}")
    for stage in ("expanded_sft", "grpo", "compress", "eval"):
        caught = refusal(f"stage={stage}", "start_from=expanded", "grpo.trainer.per_device_train_batch_size=16")
        assert caught.key == "start_from" and f"which stage {stage} needs" in str(caught)
    validate(config_of("stage=expand", "start_from=expanded", "expand.again=true"))
    validate(config_of("stage=expanded_sft", "start_from=expanded", "expanded_sft.trainer.chat_template_path=a.jinja"))


def test_the_exits_that_are_trained_decide_the_batch_arithmetic():
    trained = ["stage=grpo", DAE, "grpo.train_only=expansion"]
    validate(config_of(*trained, "grpo.trainer.per_device_train_batch_size=8"))
    assert "no multiple" in str(refusal("stage=grpo", DAE, "grpo.trainer.per_device_train_batch_size=8"))
    both = ["start_from=both", *trained]
    family_folder(Path("both"), expansion_blocks=[3, 1])
    assert "2 exits x 8 samples" in str(refusal(*both, "grpo.trainer.per_device_train_batch_size=8"))
    validate(config_of(*both, "grpo.trainer.per_device_train_batch_size=16"))
    assert refusal("stage=compress", "start_from=both").key == "compress.exit"


def test_a_server_is_asked_for_the_depth_that_the_expansion_has_made(monkeypatch):
    command = ["stage=grpo", DAE, "rollout=vllm_server", "rollout.addresses={small: [http://a:1]}"]
    command += ["grpo.exits=[small]", ONE_EXIT]
    monkeypatch.setattr("ruyi_rl.validation.rollout.vllm_problem", lambda: None)
    monkeypatch.setattr(addresses, "answering_layers", lambda urls: [5])
    validate(config_of(*command))
    assert "the branch of small has 7" in str(refusal(*command, "expand.blocks=5"))
    monkeypatch.setattr(addresses, "answering_layers", lambda urls: [2])
    assert "of 2 layers: the branch of small has 5" in str(refusal(*command))


def test_a_config_json_says_what_is_expanded_and_compressed():
    stored = {"early_exit_points": [2, 21, 39], "exit_names": ["a", "b", "c"], "num_hidden_layers": 40}
    assert described_family(stored) == KnownFamily({"a": 2, "b": 21, "c": 39}, {"a": 0, "b": 0, "c": 0})
    grown = described_family(stored | {"expansion_blocks": [3, 0, 2], "factor_ranks": {}})
    assert grown.expanded == ["a", "c"] and grown.depths == {"a": 6, "b": 22, "c": 42} and not grown.compressed
    ranks = {"model.expansions.2.0.mlp.up_proj": 4, "lm_head.2": 3, "model.layers.1.mlp.up_proj": 2, "lm_head": 1}
    assert described_family(stored | {"expansion_blocks": [3, 0, 2], "factor_ranks": ranks}).compressed == {"c"}


def test_the_stages_hand_the_family_on():
    config = config_of("stage=pipeline", DAE, "expand.exit=medium", "expand.blocks=2")
    found = families(config, chain(config), known_family(config))
    assert [found[stage].blocks["medium"] for stage in chain(config)] == [0, 0, 0, 2, 2, 2, 2]
    assert [stage for stage in found if found[stage].compressed] == ["eval"]
    assert found["grpo"].depths == {"small": 2, "medium": 5, "large": 5}
    assert found["eval"].compressed == {"medium"}


def test_expansions_add_up_and_another_exit_can_be_compressed_later():
    once = expanded(ExpandOptions(blocks=2), PLAIN)
    assert once.blocks == {"small": 2, "large": 0} and PLAIN.blocks["small"] == 0
    assert expanded(ExpandOptions(again=True), once).depths == {"small": 7, "large": 5}
    both = expanded(ExpandOptions(exit="large", blocks=1), compressed(CompressOptions(), once))
    assert compressed(CompressOptions(), both).compressed == {"small", "large"}
    assert expanded(ExpandOptions(), None) is None and compressed(CompressOptions(), None) is None


def test_trained_exits_are_the_expanded_ones():
    family = KnownFamily({"a": 0, "b": 1, "c": 2}, {"a": 1, "b": 0, "c": 2})
    only = {"train_only": "expansion"}
    assert trained_exits("sft", SFTOptions(), family) == {"a": 0, "b": 1, "c": 2}
    assert trained_exits("sft", SFTOptions(**only), family) == {"a": 0, "c": 2}
    assert trained_exits("sft", SFTOptions(exits=["c"], **only), family) == {"c": 2}
    assert trained_exits("sft", SFTOptions(exits=["c"], **only), None) is None
