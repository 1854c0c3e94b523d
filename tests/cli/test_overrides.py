"""Overrides that are refused: one message that names the key, what was given and the nearest right one."""

import pytest

from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.refusal import Refusal

REFUSED = {
    # Keys, at every depth.
    "modl=tiny": ("modl", "'model'"),
    "seeed=1": ("seeed", "'seed'"),
    "+seeed=1": ("seeed", "'seed'"),
    "++grpo.trainr.beta=1": ("grpo.trainr", "'grpo.trainer'"),
    "grpo.advantage.scal=exit": ("grpo.advantage.scal", "'grpo.advantage.scale'"),
    "sft.stage_two.data.pth=x": ("sft.stage_two.data.pth", "'sft.stage_two.data.path'"),
    "reward.functions.mine.weigt=2": ("reward.functions.mine.weigt", "'reward.functions.mine.weight'"),
    "grpo={advantge: {scale: exit}}": ("grpo.advantge", "'grpo.advantage'"),
    "grpo={advantage: {scal: exit}}": ("grpo.advantage.scal", "'grpo.advantage.scale'"),
    "learning_rate=1": ("learning_rate", "'grpo.trainer.learning_rate'"),
    "zzzzzz=1": ("zzzzzz", "run_dir"),
    "seed.foo=1": ("seed.foo", "int"),
    "~seed": ("~seed", "int"),
    "~grpo.trainer.nothing": ("~grpo.trainer.nothing", "not set"),
    # Trainer fields.
    "grpo.trainer.learning_rat=1": ("grpo.trainer.learning_rat", "'grpo.trainer.learning_rate'"),
    "sft.trainer.num_generations=4": ("sft.trainer.num_generations", "SFTConfig"),
    "pretrain.trainer.max_lenth=4": ("pretrain.trainer.max_lenth", "'pretrain.trainer.max_length'"),
    "sft.stage_two.trainer.max_stps=4": ("sft.stage_two.trainer.max_stps", "'sft.stage_two.trainer.max_steps'"),
    "grpo.trainer={learning_rat: 1}": ("grpo.trainer.learning_rat", "'grpo.trainer.learning_rate'"),
    # Types.
    "seed=abc": ("seed", "int"),
    "seed=1.5": ("seed", "int"),
    "seed=null": ("seed", "int"),
    "fresh=maybe": ("fresh", "bool"),
    "sft.exits=small": ("sft.exits", "list[str] or null"),
    "model.exits.small=x": ("model.exits.small", "int"),
    "model.exits={a: x}": ("model.exits.a", "int"),
    "grpo=1": ("grpo", "a block of"),
    "grpo.trainer=null": ("grpo.trainer", "dict"),
    "grpo.trainer.learning_rate=fast": ("grpo.trainer.learning_rate", "float"),
    "grpo.trainer.max_steps=1.5": ("grpo.trainer.max_steps", "int"),
    "grpo.trainer.max_steps=true": ("grpo.trainer.max_steps", "int"),
    "grpo.trainer.bf16=1": ("grpo.trainer.bf16", "bool"),
    "grpo.trainer.loss_type=null": ("grpo.trainer.loss_type", "str"),
    "grpo.trainer.loss_type=gppo": ("grpo.trainer.loss_type", "dapo"),
    "grpo.trainer.importance_sampling_level=word": ("grpo.trainer.importance_sampling_level", "sequence"),
    "sft.trainer.lr_scheduler_type=cosin": ("sft.trainer.lr_scheduler_type", "cosine"),
    "sft.trainer.packing_strategy=first": ("sft.trainer.packing_strategy", "bfd"),
    # Fields that another key decides.
    "grpo.trainer.scale_rewards=group": ("grpo.trainer.scale_rewards", "grpo.advantage.scale"),
    "grpo.trainer.use_vllm=true": ("grpo.trainer.use_vllm", "rollout"),
    "grpo.trainer.reward_weights=[1.0]": ("grpo.trainer.reward_weights", "reward.functions"),
    "sft.trainer.output_dir=x": ("sft.trainer.output_dir", "run_dir"),
    "sft.trainer.seed=3": ("sft.trainer.seed", "use seed"),
    "grpo.trainer.deepspeed=x.json": ("grpo.trainer.deepspeed", "deepspeed="),
    "grpo.trainer.resume_from_checkpoint=x": ("grpo.trainer.resume_from_checkpoint", "fresh=true"),
    # Choices.
    "stage=grop": ("stage", "'grpo'"),
    "model=tini": ("model", "'tiny'"),
    "data=gsm8": ("data", "'gsm8k'"),
    "reward=mathe": ("reward", "'math'"),
    "experiment=zzz": ("experiment", "ruyi2_14b"),
    "deepspeed=zero4": ("deepspeed", "'zero"),
    "model=null": ("model", "--help"),
    "model=[tiny,custom]": ("model", "--help"),
    "~data": ("data", "--help"),
    "dat/x=y": ("dat/x", "data"),
    "dta@sft.stage_two.data=math": ("dta@sft.stage_two.data", "'data'"),
    "data@sft.stage_tow.data=math": ("sft.stage_tow", "'sft.stage_two'"),
    # Syntax.
    "run_dir=~/x": ("run_dir=~/x", "quote"),
    "run_dir=${nme}": ("run_dir", "'nme'"),
    "grpo": ("grpo", "'stage=grpo'"),
    "foo": ("foo", "key=value"),
    "a=b=c": ("a=b=c", "quote"),
    "seed={": ("seed={", "quote"),
    "seed=1,2": ("seed", "-m"),
    "seed=range(1,3)": ("seed", "-m"),
    "hydra.run.dir=x": ("hydra.run.dir", "run_dir"),
    "hydra/launcher=joblib": ("hydra/launcher", "-m"),
    "name=${seeed}": ("name", "seeed"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused(override):
    key, hint = REFUSED[override]
    with pytest.raises(Refusal) as refusal:
        to_run_config(compose_config([override]))
    assert refusal.value.key == key
    assert hint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_given_value_stands_in_the_message():
    with pytest.raises(Refusal, match="'fast'"):
        compose_config(["grpo.trainer.learning_rate=fast"])
    with pytest.raises(Refusal, match="'abc'"):
        compose_config(["seed=abc"])
    with pytest.raises(Refusal, match="'grop'"):
        compose_config(["stage=grop"])


def test_unknown_root_file_is_refused():
    with pytest.raises(Refusal, match="nothing_here"):
        compose_config([], ConfigSource(root="nothing_here"))


@pytest.mark.parametrize(
    "text", ["3+5+7+4=", "What, then: (a) or [b] {c", "${seed} \\${x} \\n $5", "", "null", '"half', "it's"]
)
def test_prose_is_taken_as_it_stands(text):
    config = to_run_config(compose_config([f"generate.prompt={text}", f"generate.system={text}"]))
    assert (config.generate.prompt, config.generate.system) == (text, text)


def test_quoted_prose_is_read_by_hydra():
    assert to_run_config(compose_config(["generate.prompt='a, b'"])).generate.prompt == "a, b"
