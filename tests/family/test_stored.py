import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.family.stored import same_function, stored_family, weight_files

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
EXITS = {"small": 0, "medium": 1, "large": 3}


@pytest.fixture
def family():
    return Family.from_scratch(Qwen3Config(**SHAPE), EXITS, seed=1)


def saved(family, folder, **options):
    family.save_pretrained(folder, **options)
    return stored_family(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared_heads", [False, True])
def test_sizes_are_those_of_the_loaded_branch(tmp_path, dtype, shared_heads):
    family = Family.from_scratch(Qwen3Config(**SHAPE, tie_word_embeddings=shared_heads), EXITS, shared_heads, seed=1)
    stored = saved(family.to(dtype), tmp_path)
    for exit, k in EXITS.items():
        size = stored.size(exit)
        assert (size.layers, size.parameters) == (k + 1, family.branch_parameters(exit))
        assert size.bytes == dtype.itemsize * size.parameters


def test_an_expanded_branch_has_its_new_blocks_in_its_size(tmp_path, family):
    before = saved(family, tmp_path / "a").size("small")
    stored = saved(family.expand("small", 2), tmp_path / "b")
    block = sum(parameter.numel() for parameter in family.model.expansions[0][0].parameters())
    assert (stored.size("small").layers, stored.size("small").parameters) == (3, before.parameters + 2 * block)
    assert stored.size("large").layers == 4


def test_factors_count_as_factors(tmp_path, family):
    dense = saved(family, tmp_path / "a").size("small").parameters
    family.config.factor_ranks = {"lm_head.0": 3}
    factored = Family.from_scratch(Qwen3Config(**SHAPE), EXITS, seed=1)
    factored = type(factored)(family.config)
    rows, columns = SHAPE["vocab_size"], SHAPE["hidden_size"]
    assert saved(factored, tmp_path / "b").size("small").parameters == dense - rows * columns + 3 * (rows + columns)


def test_shards_are_read_like_one_file(tmp_path, family):
    whole, shards = saved(family, tmp_path / "a"), saved(family, tmp_path / "b", max_shard_size="8KB")
    assert len(weight_files(tmp_path / "b")) > 1
    assert whole.size("large") == shards.size("large")
    assert same_function(whole, shards) == set(EXITS)


def test_headers_and_tensors_are_the_familys(tmp_path, family):
    tensors = saved(family, tmp_path).tensors
    assert tensors.keys() == family.state_dict().keys()
    for name, value in family.state_dict().items():
        tensor = tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.bytes) == ("F32", tuple(value.shape), 4 * value.numel())
        assert torch.equal(tensor.load(), value)


def test_a_changed_bit_changes_only_the_exits_that_run_through_it(tmp_path, family):
    before = saved(family, tmp_path / "a")
    with torch.no_grad():
        family.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    assert same_function(before, saved(family, tmp_path / "b")) == {"small", "medium"}
    with torch.no_grad():
        family.model.norms[0].weight[0] += 1e-6
    assert same_function(before, saved(family, tmp_path / "c")) == {"medium"}


@pytest.mark.parametrize("backbone", [Qwen2Config, Qwen3Config])
def test_silent_blocks_change_no_exit_and_speaking_ones_theirs(tmp_path, backbone):
    shape = SHAPE if backbone is Qwen3Config else {k: v for k, v in SHAPE.items() if k != "head_dim"}
    family = Family.from_scratch(backbone(**shape), EXITS, seed=1)
    before = saved(family, tmp_path / "a")
    family.expand("small", 2)
    after = saved(family, tmp_path / "b")
    assert same_function(before, after) == set(EXITS)
    with torch.no_grad():
        family.model.expansions[0][1].mlp.down_proj.weight[-1, -1] = 1e-6
    assert same_function(before, saved(family, tmp_path / "c")) == {"medium", "large"}
    assert same_function(after, before) == {"medium", "large"}  # blocks that are gone are not looked into


def test_another_dtype_is_another_function(tmp_path, family):
    before = saved(family, tmp_path / "a")
    assert same_function(before, saved(family.half(), tmp_path / "b")) == set()
    brain = saved(family.bfloat16(), tmp_path / "c")
    for parameter in family.parameters():
        parameter.data = parameter.data.view(torch.float16)  # the same bits, other numbers
    assert same_function(brain, saved(family, tmp_path / "d")) == set()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no safetensors"):
        stored_family(tmp_path)
