import pytest
import torch
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.training.frozen_weights import restore_frozen

EXITS = {"small": 0, "large": 2}


@pytest.fixture
def folders(tmp_path):
    """A float32 family, and the same after a training of its small exit's new parts."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    family = Family.from_scratch(Qwen3Config(**shape, **heads), EXITS).expand("small", blocks=1)
    family.save_pretrained(tmp_path / "start")
    family.freeze_except(["small"], only_expansion=True)
    with torch.no_grad():
        for parameter in family.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    return tmp_path / "start", tmp_path / "saved", family


def test_a_family_that_an_engine_has_cast_gets_back_what_was_frozen(folders):
    start, saved, trained = folders
    trained.bfloat16().save_pretrained(saved)
    assert restore_frozen(start, saved, ["small"])
    before, after = (Family.from_pretrained(folder, dtype="auto").state_dict() for folder in (start, saved))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    learnt = trained.state_dict()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], learnt[name].float()) for name in moved)


def test_a_single_file_of_before_is_not_left_beside_several_shards(folders, monkeypatch):
    start, saved, trained = folders
    trained.bfloat16().save_pretrained(saved)
    whole = Family.save_pretrained
    monkeypatch.setattr(Family, "save_pretrained", lambda self, folder: whole(self, folder, max_shard_size="50KB"))
    assert restore_frozen(start, saved, ["small"])
    assert len(list(saved.glob("model-*.safetensors"))) > 1 and not (saved / "model.safetensors").exists()
    assert Family.from_pretrained(saved, dtype="auto").dtype == torch.float32


def test_a_family_of_its_own_dtype_is_left_as_it_is(folders):
    start, saved, trained = folders
    trained.save_pretrained(saved)
    written = (saved / "model.safetensors").stat().st_mtime_ns
    assert not restore_frozen(start, saved, ["small"])
    assert (saved / "model.safetensors").stat().st_mtime_ns == written
