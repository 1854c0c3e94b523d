"""The estimate's activations against what autograd saves, and its loads against real packs."""

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.family.shape import family_shape
from ruyi_rl.training.activation_memory import TokenLoad, activation_bytes, layer_bytes
from ruyi_rl.training.memory import standing_gradients, training_state
from ruyi_rl.training.memory_estimate import memory_estimate, pack_load, padded_load, rows_load

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXITS = {"small": 1, "medium": 3, "large": 5}


def made(kind):
    own = {"head_dim": 32} if kind is Qwen3Config else {}
    family = Family.from_scratch(kind(**SIZES, **own), EXITS)
    return family, family_shape(family.config.to_dict(), EXITS, family.config.expansions)


def saved_bytes(run, parameters) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights and inputs apart."""
    own, kept = {each.untyped_storage().data_ptr() for each in parameters}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other one gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", [Qwen3Config, Qwen2Config])
@pytest.mark.parametrize("exits", [["small"], list(EXITS)])
def test_activations_are_what_autograd_saves(kind, exits):
    family, shape = made(kind)
    ids = torch.randint(0, 300, (2, 96))
    got = saved_bytes(lambda: family.model(ids, exits=dict.fromkeys(exits)), family.parameters())
    load = rows_load({name: EXITS[name] for name in exits}, ids.numel())
    layers = sum(load.layers(shape))
    assert layers == ids.numel() * (2 if exits == ["small"] else 5 + 3)
    expected = activation_bytes(shape, load, stream=4, item=4, checkpointing=False)
    # Less what the backward pass itself makes, and the hidden states that the heads read.
    from ruyi_rl.training.activation_memory import working_bytes

    expected -= max(load.layers(shape)) * working_bytes(shape, 4, 4)
    assert got == pytest.approx(expected, rel=0.15)


def test_a_layer_of_ruyi2_14b_beside_the_paper():
    """34 bytes a token and hidden unit are Korthikanti et al.'s, with a four times wider MLP of two matrices and
    dropout; here it is 3.4 times and three matrices, and norms in float32."""
    shape = family_shape(
        {"model_type": "qwen3", **SIZES, "hidden_size": 5120, "intermediate_size": 17408}
        | {"num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 40},
        EXITS,
    )
    assert 45 < layer_bytes(shape, stream=2, item=2) / 5120 < 65


def test_tokens_leave_at_their_exit():
    _, shape = made(Qwen3Config)
    load = TokenLoad(10, {"small": 5, "medium": 7, "large": 9})
    trunk, own = [31, 26, 26, 19, 19], [15, 17, 19]
    assert load.layers(shape) == trunk + own


def test_a_larger_micro_batch_goes_in_several_packs():
    whole, split = pack_load(EXITS, 100, 900, None), pack_load(EXITS, 100, 900, 500)
    assert (whole.shared, whole.own["small"]) == (100, 300)
    assert (split.shared, split.own["small"]) == (50, 150)
    assert padded_load(EXITS, 6, 50).own == dict.fromkeys(EXITS, 100)


def test_modes_and_precisions():
    _, shape = made(Qwen3Config)
    counts, load = (shape.parameters, shape.parameters), rows_load(EXITS, 1000)

    def estimate(mode, bits16=True, checkpointing=True, **more):
        return memory_estimate(shape, mode, 8, counts, load, bits16, checkpointing, "cuda", **more)

    off, sharded = estimate("off"), estimate("zero3")
    # Autocast holds the weights in 16 bits a second time, and the residual stream in 32.
    assert off.copies == 2 * shape.parameters and estimate("off", bits16=False).copies == 0
    assert off.activations > sharded.activations
    assert estimate("zero3", checkpointing=False).activations > sharded.activations
    assert estimate("zero2").copies == 0 and sharded.copies == 2 * shape.parameters
    assert estimate("zero3_offload").training < sharded.training
    kept = estimate("zero2", reference=True).state.weights - estimate("zero2").state.weights
    assert kept == 2 * shape.parameters


def test_gradients_that_stand_between_steps():
    """ZeRO-3's flat buffer is never given back, nor are the buckets that ranks without DeepSpeed sum."""
    own = 2 * 1000 // 8
    found = {mode: standing_gradients(mode, 8, 1000, bits16=True) for mode in ("off", "zero1", "zero2", "zero3")}
    assert found == {"off": 4000, "zero1": 0, "zero2": 0, "zero3": own}
    assert standing_gradients("off", 1, 1000, bits16=True) == 0
    assert training_state("zero3", 8, 1000, 0, True).gradients == own
    assert training_state("off", 8, 1000, 0, True).gradients == 4000 + 4000
