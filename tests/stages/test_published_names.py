"""A published checkpoint loaded and exported again is the same file, tensor for tensor and bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.stages.published_names import published_config, published_tensors, save_published, untellable
from tests.factored_family import with_factors
from tests.published_checkpoint import written_by_hand
from tests.stages.quick_command import run_tool_command

WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers")
"""Keys of the sliding window, which is always switched off: it would mask long contexts."""


@pytest.fixture
def round_trip(export_config, tmp_path, monkeypatch):
    """Writes a published checkpoint by hand and exports it; returns the two folders."""
    monkeypatch.chdir(tmp_path)

    def run(model_type, shared, tied=False, dtype=torch.float32):
        before, after = tmp_path / "published", tmp_path / "run" / "export" / "ruyi"
        before.mkdir()
        written_by_hand(before, model_type, shared)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(before / "model.safetensors").items()}
        config = json.loads((before / "config.json").read_text())
        config |= {"tie_word_embeddings": tied, "torch_dtype": str(dtype).removeprefix("torch.")}
        if tied:
            del tensors["lm_head.weight"]
        save_file(tensors, before / "model.safetensors", metadata={"format": "pt"})
        (before / "config.json").write_text(json.dumps(config))
        tokenizer = byte_tokenizer()
        tokenizer.save_pretrained(before)
        assert run_tool_command(export_config, "start_from=published", "export.format=ruyi") == 0
        return before, after

    return run


@pytest.mark.parametrize(
    ("model_type", "shared", "tied", "dtype"),
    [
        ("ruyi_qwen3", False, False, torch.bfloat16),
        ("ruyi_qwen3", True, True, torch.bfloat16),
        ("ee_qwen3", True, False, torch.float32),
        ("ruyi_qwen2", False, False, torch.float32),
        ("ruyi_qwen2", True, True, torch.bfloat16),
    ],
)
def test_a_published_checkpoint_comes_back_bit_by_bit(round_trip, model_type, shared, tied, dtype):
    before, after = round_trip(model_type, shared, tied, dtype)
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert tensor.dtype == new[name].dtype == dtype and tensor.shape == new[name].shape
        assert torch.equal(tensor.view(torch.uint8), new[name].view(torch.uint8)), name
    published, written = (json.loads((folder / "config.json").read_text()) for folder in (before, after))
    for key, value in published.items():
        if key not in WINDOW:
            assert written[key] == value, key
    assert written["use_sliding_window"] is False and written["sliding_window"] is None
    assert not {"exit_names", "expansion_blocks", "factor_ranks", "layer_types", "rope_parameters"} & written.keys()
    one, other = (FamilyConfig.from_pretrained(str(folder)).to_dict() for folder in (before, after))
    for config in (one, other):
        for key in ("_name_or_path", "auto_map", "max_window_layers", "transformers_version"):
            config.pop(key, None)
    changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert changed <= {"eos_token_id", "pad_token_id"}


def test_the_published_codes_files_go_along_where_they_are_at_hand(tmp_path, family_folder):
    family = Family.from_pretrained(str(family_folder))
    code = tmp_path / "code"
    code.mkdir()
    (code / "modeling_ruyi_qwen3.py").write_text("# theirs")
    for folder in (tmp_path / "with", tmp_path / "without"):
        folder.mkdir()
        save_published(family, folder, code if folder.name == "with" else tmp_path)
    assert (tmp_path / "with" / "modeling_ruyi_qwen3.py").read_text() == "# theirs"
    assert not list((tmp_path / "without").glob("*.py"))
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    assert config["architectures"] == ["RuyiQwen3ForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_ruyi_qwen3.RuyiQwen3ForCausalLM"
    assert config["exit_names"] == ["small", "medium", "large"]  # no position tells these
    assert str(tmp_path) not in (tmp_path / "with" / "config.json").read_text()


def test_factors_without_new_blocks_are_multiplied_and_new_blocks_have_no_name(family_folder):
    family = with_factors(Family.from_pretrained(str(family_folder)), "small", blocks=1, std=0.3)
    exits = family.exits
    assert untellable(family.config.to_dict(), exits) == (
        "the published names have no place for expansion blocks (1 of small)"
    )
    with pytest.raises(ValueError, match="expansion blocks"):
        published_tensors(family)
    head = family.lm_head[0]
    family.model.expansions[0] = torch.nn.ModuleList()
    family.config.expansion_blocks = []
    family.config.factor_ranks = {"lm_head.0": head.rank}
    assert untellable(family.config.to_dict(), exits) is None
    tensors = published_tensors(family)
    assert torch.equal(tensors["lm_head.0.weight"], head.u.weight @ head.v.weight)
    assert not any(".u." in name or ".v." in name for name in tensors)
    assert tensors.keys() == Family.from_pretrained(str(family_folder)).state_dict().keys()


def test_scaled_rotary_embeddings_keep_their_published_spelling():
    stored = {
        "model_type": "ruyi_qwen2",
        "early_exit_points": [3, 7],
        "exit_names": ["exit3", "exit7"],
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
        "dtype": "bfloat16",
    }
    config = published_config(stored)
    assert config["rope_theta"] == 1e6 and config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    assert config["torch_dtype"] == "bfloat16" and "rope_parameters" not in config and "exit_names" not in config
    assert config["auto_map"]["AutoConfig"] == "configuration_ruyi_qwen2.RuyiQwen2Config"
