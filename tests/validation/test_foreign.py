"""Models of strangers: no pickle is read, no code of theirs is run, and the refusal comes before torch."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.init import from_base
from ruyi_rl.stages.inputs import load_family, load_tokenizer
from ruyi_rl.validation.model import check_model

EXITS = {"small": 0, "large": 1}
SENTINEL = "from pathlib import Path\nPath({path!r}).touch()\n"
CODE = "class Stranger:\n    pass\n"


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock Qwen3 on disk, with a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("stock"), byte_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    AutoModelForCausalLM.from_config(Qwen3Config(vocab_size=len(tokenizer), **shape, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(stock, tmp_path):
    return shutil.copytree(stock, tmp_path / "base")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder):
    """The folder with its weights in a pickle in place of safetensors."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def with_code(folder, file, key):
    """The folder with code that leaves a mark when it is run, named in `file` as transformers wants it."""
    (folder / "stranger.py").write_text(SENTINEL.format(path=str(folder / "ran")) + CODE)
    auto = {"AutoTokenizer": ["stranger.Stranger", None]} if key == "AutoTokenizer" else {key: "stranger.Stranger"}
    edit(folder / file, auto_map=auto, **({"tokenizer_class": "Stranger"} if key == "AutoTokenizer" else {}))


def check(base):
    check_model(RunConfig(StageOptions("init"), model=ModelOptions(base=str(base), exits=dict(EXITS))))


def build(base):
    from_base(ModelOptions(base=str(base), exits=dict(EXITS)))


def test_a_stock_folder_is_taken(base):
    check(base)
    build(base)


@pytest.mark.parametrize("refuse", [check, build])
def test_pickled_weights_are_refused(base, refuse):
    pickled(base)
    with pytest.raises(Refusal, match="safetensors"):
        refuse(base)


def test_pickles_beside_safetensors_are_passed_over(base):
    whole = AutoModelForCausalLM.from_pretrained(base).state_dict()
    torch.save({name: torch.zeros_like(tensor) for name, tensor in whole.items()}, base / "pytorch_model.bin")
    check(base)
    family, _ = from_base(ModelOptions(base=str(base), exits=dict(EXITS)))
    assert torch.equal(family.get_input_embeddings().weight, whole["model.embed_tokens.weight"])


@pytest.mark.parametrize("refuse", [check, build])
@pytest.mark.parametrize(
    ("file", "key", "part"),
    [
        ("config.json", "AutoConfig", "model"),
        ("config.json", "AutoModelForCausalLM", "model"),
        ("tokenizer_config.json", "AutoTokenizer", "tokenizer"),
    ],
)
def test_code_is_never_run(base, refuse, file, key, part):
    with_code(base, file, key)
    with pytest.raises(Refusal, match=f"the {part} of .* needs code of its own .stranger.py"):
        refuse(base)
    assert not (base / "ran").exists()


def test_a_family_with_code_beside_it_is_taken_and_the_code_is_not_run(stock, tmp_path):
    folder = tmp_path / "family"
    Family.from_base(str(stock), dict(EXITS)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with_code(folder, "config.json", "AutoModelForCausalLM")
    check_model(RunConfig(StageOptions("sft"), start_from=str(folder)))
    assert load_family(folder, ModelOptions()).exits == EXITS
    load_tokenizer(folder)
    assert not (folder / "ran").exists()


def test_a_familys_pickled_weights_are_refused(stock, tmp_path):
    folder = tmp_path / "family"
    family = Family.from_base(str(stock), dict(EXITS))
    family.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(family.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(Refusal, match="safetensors"):
        check_model(RunConfig(StageOptions("sft"), start_from=str(folder)))
    with pytest.raises(Refusal, match="safetensors"):
        load_family(folder, ModelOptions())
