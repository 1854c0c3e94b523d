"""Joint SFT against stock branches, one by one, and against TRL's own trainer."""

import pytest
import torch
from datasets import Dataset
from transformers.models.qwen3 import modeling_qwen3
from trl import SFTConfig, SFTTrainer

from ruyi_rl.family.weights import branch_sources
from ruyi_rl.training.schedules import LossWeights
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

ROWS = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": f"{a}+{b}="}],
            "completion": [{"role": "assistant", "content": "so " * (a % 4) + f"\\boxed{{{a + b}}}"}],
        }
        for a in range(4)
        for b in range(4)
    ]
)


def config(folder, **changes):
    return SFTConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_length": 128,
            **changes,
        }
    )


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def exact_norm(self, hidden):
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradient_is_the_weighted_sum_of_the_branches(make_family, tokenizer, tmp_path, monkeypatch, dtype, tolerance):
    if dtype == torch.float64:  # the stock norm rounds to float32 inside, forwards and backwards
        monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", exact_norm)
    family = make_family().to(dtype)
    weights = {"small": 0.25, "medium": 0.5, "large": 2.0}
    trainer = FamilySFTTrainer(
        model=family,
        args=config(tmp_path),
        train_dataset=ROWS,
        processing_class=tokenizer,
        loss_weights=LossWeights(weights, weights),
    )
    batch = batch_of(trainer)
    loss = trainer.compute_loss(family, dict(batch))
    loss.backward()
    expected: dict[str, torch.Tensor] = {}
    expected_loss = 0.0
    for name, weight in weights.items():
        stock = family.branch(name).train()
        logits = stock(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        part = weight * torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100)
        part.backward()
        expected_loss += part.item()
        sources = branch_sources(family.config, name, [n for n, _ in stock.named_parameters()])
        for stock_name, gradient in gradients(stock).items():
            source = sources[stock_name]
            expected[source] = expected.get(source, 0) + gradient
    assert loss.item() == pytest.approx(expected_loss, rel=tolerance * 10)
    got = gradients(family)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error <= tolerance, f"{name}: {error}"


def test_one_exit_equals_trl(make_family, tokenizer, tmp_path):
    """The last exit alone: the same losses and weights as SFTTrainer on the stock branch, over several steps."""
    family = make_family()
    stock = family.branch("large")
    common = {"train_dataset": ROWS, "processing_class": tokenizer}
    ours = FamilySFTTrainer(model=family, args=config(tmp_path / "a"), exits=["large"], **common)
    theirs = SFTTrainer(model=stock, args=config(tmp_path / "b"), **common)
    ours.train(), theirs.train()
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    trained = family.branch("large").state_dict()
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=1e-5)
    accuracy = [[row["mean_token_accuracy"] for row in t.state.log_history if "loss" in row] for t in (ours, theirs)]
    assert accuracy[0] == pytest.approx(accuracy[1])


def test_micro_batches_do_not_change_the_update(make_family, tokenizer, tmp_path):
    after = []
    for size, steps in ((8, 1), (2, 4)):
        family = make_family()
        args = config(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
        )
        FamilySFTTrainer(model=family, args=args, train_dataset=ROWS, processing_class=tokenizer).train()
        after.append(family.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, atol=1e-6, rtol=1e-4)


CHATS = Dataset.from_list(
    [
        {
            "messages": [
                {"role": "user", "content": "add " * (n % 3) + f"{n}"},
                {"role": "assistant", "content": f"{n + 1}"},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "so " * (n % 4) + f"{n + 2}"},
            ]
        }
        for n in range(8)
    ]
)
TEXTS = Dataset.from_list([{"text": "one and " * (n % 5) + "two"} for n in range(8)])


def measured(trainer, batch, packed):
    """Loss, gradients and metrics of a batch."""
    trainer.packed = packed
    trainer._metrics["train"].clear()
    trainer.state.num_input_tokens_seen = 0
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), gradients(trainer.model), dict(trainer._metrics["train"])


def assert_same(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert found[2].keys() == wanted[2].keys()
    for name, values in wanted[2].items():
        assert found[2][name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.parametrize("exits", [None, ["small", "large"]])
@pytest.mark.parametrize(
    "rows, options", [(ROWS, {}), (CHATS, {"assistant_only_loss": True}), (CHATS, {}), (TEXTS, {"max_length": 12})]
)
def test_a_packed_batch_equals_the_padded_one(make_family, tokenizer, tmp_path, rows, options, exits):
    weights = {"small": 0.25, "medium": 0.5, "large": 2.0}
    trainer = FamilySFTTrainer(
        model=make_family(),
        args=config(tmp_path, **options),
        train_dataset=rows,
        processing_class=tokenizer,
        loss_weights=LossWeights(weights, weights),
        exits=exits,
    )
    batch = batch_of(trainer)
    assert not batch["attention_mask"].all()
    learnt, tokens = (batch["labels"] != -100).sum(), batch["attention_mask"].sum()
    assert (learnt == tokens) == (not options.get("assistant_only_loss") and "prompt" not in rows.column_names)
    assert_same(measured(trainer, batch, packed=True), measured(trainer, batch, packed=False))
    # On the other side too, where the label of a row's first token must not be predicted from padding.
    flipped = {key: value.flip(1) for key, value in batch.items()}
    flipped["labels"] = flipped["labels"].masked_fill(flipped["attention_mask"].cumsum(1) <= 1, -100)
    assert_same(measured(trainer, flipped, packed=True), measured(trainer, flipped, packed=False))


def test_a_batch_without_a_label_has_no_loss(make_family, tokenizer, tmp_path):
    trainer = FamilySFTTrainer(
        model=make_family(), args=config(tmp_path), train_dataset=TEXTS, processing_class=tokenizer
    )
    batch = batch_of(trainer)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss, found, _ = measured(trainer, batch, packed=True)
    assert loss == 0 and found.keys() == {name for name, _ in trainer.model.named_parameters()}
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("options", [{"packing": True, "max_length": 512}, {"padding_free": True, "max_length": None}])
def test_sequences_of_one_row_do_not_see_each_other(make_family, tokenizer, tmp_path, options, packed):
    """Loss and gradients are those of the sequences alone; TRL's collator puts them into one row, or into several."""
    size = 2 if "packing" in options else 16
    common = {"train_dataset": ROWS, "processing_class": tokenizer}
    one_row = FamilySFTTrainer(
        model=make_family(),
        args=config(tmp_path / "a", per_device_train_batch_size=size, **options),
        **common,
    )
    batch = batch_of(one_row)
    assert "attention_mask" not in batch and (batch["position_ids"] == 0).sum() == 16
    alone = FamilySFTTrainer(model=make_family(), args=config(tmp_path / "b", per_device_train_batch_size=16), **common)
    found, wanted = measured(one_row, batch, packed), measured(alone, batch_of(alone), packed=False)
    assert_same(found, wanted)


def test_only_the_assistant_is_learnt(make_family, tokenizer, tmp_path):
    trainer = FamilySFTTrainer(
        model=make_family(), args=config(tmp_path), train_dataset=ROWS, processing_class=tokenizer
    )
    batch = batch_of(trainer)
    for ids, labels in zip(batch["input_ids"], batch["labels"]):
        learnt = tokenizer.decode(ids[labels != -100])
        assert "boxed" in learnt and "+" not in learnt and learnt.strip().endswith(tokenizer.eos_token)


def test_plain_text_counts_every_token(make_family, tokenizer, tmp_path):
    rows = Dataset.from_list([{"text": "one two three"}, {"text": "four"}])
    trainer = FamilySFTTrainer(
        model=make_family(),
        args=config(tmp_path, per_device_train_batch_size=2),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    batch = batch_of(trainer)
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"].bool())


def test_metrics_per_exit_and_frozen_exits(make_family, tokenizer, tmp_path):
    family = make_family()
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    trainer = FamilySFTTrainer(
        model=family,
        args=config(tmp_path),
        exits=["small"],
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(logged["small/loss"], rel=1e-5)
    assert "small/mean_token_accuracy" in logged and not any(key.startswith("large/") for key in logged)
    moved = {name for name, tensor in family.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(
        name.startswith(("model.embed_tokens", "model.eelayers.0", "model.norms.0", "lm_head.0")) for name in moved
    )


def test_loss_weights_follow_the_steps(make_family, tokenizer, tmp_path):
    exits = {"small": 1.0, "medium": 1.0, "large": 1.0}
    trainer = FamilySFTTrainer(
        model=make_family(),
        args=config(tmp_path, max_steps=4),
        train_dataset=ROWS,
        processing_class=tokenizer,
        loss_weights=LossWeights(exits, {**exits, "small": 0.0}, "linear"),
    )
    trainer.train()
    logged = [row["small/loss_weight"] for row in trainer.state.log_history if "small/loss_weight" in row]
    assert logged == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_no_logits_are_held(make_family, tokenizer, tmp_path, monkeypatch):
    """No tensor of batch x length x vocabulary elements is alive for the backward pass."""
    family = make_family()
    trainer = FamilySFTTrainer(model=family, args=config(tmp_path), train_dataset=ROWS, processing_class=tokenizer)
    batch = batch_of(trainer)
    counted = int((batch["labels"][:, 1:] != -100).sum())
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.compute_loss(family, dict(batch))
    vocabulary = len(tokenizer)
    heads = (vocabulary, family.config.hidden_size)
    assert saved and not [s for s in saved if vocabulary in s and s != heads and s != heads[::-1]], counted


def test_other_losses_are_refused(make_family, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="dft"):
        FamilySFTTrainer(
            model=make_family(), args=config(tmp_path, loss_type="dft"), train_dataset=ROWS, processing_class=tokenizer
        )
