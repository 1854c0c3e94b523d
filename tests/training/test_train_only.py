"""`train_only=expansion`: after training nothing else has moved, and nothing else has cost an optimiser's memory."""

import pytest
import torch
from transformers import TrainerCallback

from ruyi_rl.family import Family
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.inputs import chosen_exits
from ruyi_rl.training.family_trainer import freeze_others, trained_exits
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.options import SFTOptions
from ruyi_rl.training.sft_trainer import FamilySFTTrainer
from tests.training import test_grpo_trainer, test_sft_trainer

EXITS = {"small": 0, "medium": 1, "large": 3}
IDS = torch.arange(3, 27).view(2, 12)
CHECKPOINTING = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.fixture
def expanded(make_family, tmp_path):
    """A family on disk with new blocks on some of its exits."""

    def make(small=2, medium=0, large=0) -> Family:
        family = make_family()
        for exit, blocks in (("small", small), ("medium", medium), ("large", large)):
            if blocks:
                family.expand(exit, blocks)
        family.save_pretrained(tmp_path / "expanded")
        return Family.from_pretrained(tmp_path / "expanded")

    return make


def trained_names(family: Family, exits) -> set[str]:
    parts = [f"{kind}.{list(EXITS).index(exit)}." for exit in exits for kind in ("expansions", "norms", "lm_head")]
    return {name for name, _ in family.named_parameters() if name.removeprefix("model.").startswith(tuple(parts))}


def logits(family: Family) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return family.eval()(IDS).logits


class Gradients(TrainerCallback):
    """Names of the parameters that hold a gradient before each step."""

    def __init__(self):
        self.names = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.names.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})


def trainer_of(kind, family, tokenizer, folder, seen, exits, packed, **changes):
    how = {"model": family, "processing_class": tokenizer, "exits": exits, "train_only": "expansion", "packed": packed}
    changes |= {"max_steps": 3, "learning_rate": 1e-2}
    if kind == "sft":
        args = test_sft_trainer.config(folder, **changes)
        return FamilySFTTrainer(args=args, train_dataset=test_sft_trainer.ROWS, callbacks=[seen], **how)
    return FamilyGRPOTrainer(
        reward_funcs=test_grpo_trainer.share_of_digits,
        args=test_grpo_trainer.config(folder, beta=0.04, per_device_train_batch_size=8, **changes),
        train_dataset=test_grpo_trainer.PROMPTS,
        callbacks=[seen],
        **how,
    )


@pytest.mark.parametrize(
    "kind, packed, checkpointing",
    [
        ("sft", True, "plain"),
        ("sft", False, "reentrant"),
        ("sft", True, "checkpointing"),
        ("grpo", True, "plain"),
        ("grpo", False, "checkpointing"),
        ("grpo", True, "reentrant"),
    ],
)
def test_nothing_else_moves_or_has_a_gradient_or_a_state(expanded, tokenizer, tmp_path, kind, packed, checkpointing):
    family, seen = expanded(small=2, large=1), Gradients()
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    answers = logits(family)
    chosen = ["small"] if packed else None
    exits = chosen or ["small", "large"]
    trained = trained_names(family, exits)
    options = CHECKPOINTING[checkpointing]
    trainer = trainer_of(kind, family, tokenizer, tmp_path / "out", seen, chosen, packed, **options)
    assert sorted(trainer.exits) == sorted(exits)
    trainer.train()

    assert seen.names == [trained] * 3
    after = family.state_dict()
    assert {name for name in before if not torch.equal(after[name], before[name])} == trained
    now = logits(family)
    assert {name for name in answers if not torch.equal(now[name], answers[name])} == set(exits)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    own = {id(parameter): name for name, parameter in family.named_parameters()}
    assert {own[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]} == trained
    assert {own[id(parameter)] for parameter in optimizer.state} == trained
    moments = [state[key].numel() for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert sum(moments) == 2 * sum(before[name].numel() for name in trained)


def test_gradients_are_those_of_the_stock_branch_with_the_same_frozen(expanded, tokenizer, tmp_path):
    """The whole step: SFT's loss on a batch, by the trainer and by the stock model of k + 1 + N layers."""
    family = expanded(small=2)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    stock = family.branch("small").train()
    for packed in (True, False):
        trainer = trainer_of("sft", family, tokenizer, tmp_path / "out", Gradients(), None, packed)
        batch = test_sft_trainer.batch_of(trainer)
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        found = {name: p.grad for name, p in family.named_parameters() if p.grad is not None}
        for name, parameter in stock.named_parameters():
            new = name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.", "lm_head."))
            parameter.requires_grad_(new)
        stock.zero_grad()
        stock(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss.backward()
        names = {"model.layers.1.": "model.expansions.0.0.", "model.layers.2.": "model.expansions.0.1."}
        names |= {"model.norm.": "model.norms.0.", "lm_head.": "lm_head.0."}
        wanted = {}
        for name, parameter in stock.named_parameters():
            if parameter.grad is not None:
                prefix = next(prefix for prefix in names if name.startswith(prefix))
                wanted[names[prefix] + name.removeprefix(prefix)] = parameter.grad
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3)
        family.zero_grad()


def test_without_names_the_expanded_exits_are_trained(expanded):
    family = expanded(small=1, large=2)
    assert trained_exits(family.config, "expansion") == ["small", "large"]
    assert trained_exits(family.config, None) == list(EXITS)
    assert freeze_others(family, None, "expansion") == ["small", "large"]
    assert {name for name, p in family.named_parameters() if p.requires_grad} == trained_names(
        family, ["small", "large"]
    )
    assert freeze_others(family, None) == list(EXITS)  # and back
    assert all(parameter.requires_grad for parameter in family.parameters())


@pytest.mark.parametrize(
    "blocks, exits, train_only, message",
    [
        (1, ["medium"], "expansion", r"exits \['medium'\] have no expansion blocks"),
        (1, ["small", "large"], "expansion", r"exits \['large'\] have no expansion blocks"),
        (0, None, "expansion", "train_only=expansion: no exit of .* has expansion blocks"),
        (1, ["tiny"], "expansion", r"no such exit: \['tiny'\]"),
        (1, None, "head", "train_only must be one of"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(expanded, blocks, exits, train_only, message):
    family = expanded(small=blocks)
    with pytest.raises(ValueError, match=message):
        freeze_others(family, exits, train_only)
    assert all(parameter.requires_grad for parameter in family.parameters())


@pytest.mark.parametrize(
    "blocks, exits, key, message",
    [
        (1, ["medium"], "sft.exits", r"medium has no expansion blocks .*one of \['small'\]"),
        (1, ["smal"], "sft.exits", "no exit 'smal'"),
        (0, None, "sft.train_only", "no exit of .* has expansion blocks"),
        (0, ["small"], "sft.exits", "small has no expansion blocks .*stage=expand"),
    ],
)
def test_a_stage_refuses_it_from_the_configuration_alone(expanded, blocks, exits, key, message):
    folder = expanded(small=blocks).config._name_or_path
    with pytest.raises(Refusal, match=message) as refused:
        chosen_exits(folder, SFTOptions(exits=exits, train_only="expansion"), "sft")
    assert str(refused.value).startswith(key)


def test_a_stage_trains_what_is_expanded(expanded):
    folder = expanded(small=1, large=1).config._name_or_path
    options = SFTOptions(train_only="expansion")
    assert chosen_exits(folder, options, "sft") == {"small": 0, "large": 3}
    assert chosen_exits(folder, SFTOptions(exits=["large"], train_only="expansion"), "sft") == {"large": 3}
    assert chosen_exits(folder, SFTOptions(), "sft") == EXITS
