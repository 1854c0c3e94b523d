"""16-bit families: trained as float32, saved as what they were."""

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config
from trl import SFTConfig

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.stages.inputs import load_family, load_to_train
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture
def folder(tmp_path):
    """A family whose weights are bfloat16."""
    config = Qwen3Config(vocab_size=len(byte_tokenizer()), **SHAPE)
    family = Family.from_scratch(config, {"small": 0, "large": 1}, seed=1).to(torch.bfloat16)
    family.save_pretrained(tmp_path / "family")
    return tmp_path / "family"


def test_a_family_is_loaded_in_its_own_dtype_whatever_the_model_group_says(folder):
    assert load_family(folder, ModelOptions(dtype="float32")).dtype == torch.bfloat16


def test_small_steps_move_the_weights_of_a_16_bit_family(folder, tmp_path):
    family, callbacks = load_to_train(folder, ModelOptions(), deepspeed=None)
    assert family.dtype == torch.float32
    before = {name: value.clone() for name, value in family.state_dict().items()}
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt": "1+1=", "completion": "2"}, {"prompt": "1+2=", "completion": "3"}])
    trainer = FamilySFTTrainer(
        model=family, args=args, train_dataset=rows, processing_class=byte_tokenizer(), callbacks=callbacks
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    stepped = Family.from_pretrained(str(tmp_path / "out" / "checkpoint-1"), dtype="auto")
    assert stepped.dtype == torch.float32
    name = "model.layers.0.mlp.gate_proj.weight"
    moved = (stepped.state_dict()[name] != before[name]).float().mean().item()
    # The same step from the same weights, rounded to their 16 bits, would be lost on most of them.
    rounded = (stepped.state_dict()[name].bfloat16() != before[name].bfloat16()).float().mean().item()
    assert moved > 0.9 and rounded < 0.1
    assert load_family(tmp_path / "saved", ModelOptions()).dtype == torch.bfloat16


def test_deepspeed_keeps_its_own_float32_weights(folder):
    family, callbacks = load_to_train(folder, ModelOptions(), deepspeed={"zero_optimization": {"stage": 2}})
    assert family.dtype == torch.bfloat16 and not callbacks
