"""Recovery of factors: what is trained, against the plain formula on whole branches, alone and over ranks."""

import copy
import json
from pathlib import Path

import pytest
import recovery_run
import torch

from ruyi_rl.family.calibration import compressed_modules
from ruyi_rl.family.modeling_factored_qwen import FactoredLinear
from ruyi_rl.family.truncation import Factors
from ruyi_rl.training.callbacks import first_and_last
from ruyi_rl.training.recovery_trainer import RecoveryTrainer
from ruyi_rl.training.taught_branch import TaughtBranch
from tests.forked_ranks import run_ranks

EXIT = recovery_run.EXIT


@pytest.fixture
def family():
    return recovery_run.family()


def truncated(branch, names, rank=6):
    return recovery_run.truncated(branch, names, rank)


def plain_student(branch, factors):
    """The whole branch with the factors in place, by nothing but `set_submodule`."""
    student = copy.deepcopy(branch)
    for name, found in factors.items():
        dense = student.get_submodule(name)
        factored = FactoredLinear(dense.in_features, dense.out_features, found.rank, dense.bias is not None)
        factored.u.weight.data, factored.v.weight.data = found.u.clone(), found.v.clone()
        if dense.bias is not None:
            factored.u.bias.data = dense.bias.data.clone()
        student.set_submodule(name, factored)
    return student


def batch(length=9):
    torch.manual_seed(3)
    ids = torch.randint(5, 90, (3, length))
    mask = torch.ones_like(ids)
    mask[0, 6:] = mask[2, 4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain_loss(student, teacher, inputs):
    """Σ over counted tokens of Σ_v p (log p - log q), and how many."""
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    counted = inputs["labels"][:, 1:] != -100
    p = torch.log_softmax(teacher(**given).logits[:, :-1][counted].double(), -1).detach()
    q = torch.log_softmax(student(**given).logits[:, :-1][counted].double(), -1)
    return (p.exp() * (p - q)).sum(), int(counted.sum())


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_loss_and_gradients_are_those_of_two_whole_branches(kind):
    made = recovery_run.family(kind)
    branch = made.branch(EXIT)
    factors = truncated(branch, compressed_modules(made.config, EXIT))
    student = plain_student(branch, factors)
    taught = TaughtBranch(made.branch(EXIT), made.exits[EXIT] + 1, factors, torch.float32)
    inputs = batch()
    wanted, tokens = plain_loss(student, branch, inputs)
    found = taught(**inputs)
    assert found.kl.numel() == tokens and wanted.item() > 1
    assert found.kl.sum().item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward()
    found.kl.sum().backward()
    trained = {name: p for name, p in taught.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(factors) == 2 * (2 * 7 + 1)
    for name in factors:
        expected, got = student.get_submodule(name), taught.student.get_submodule(taught.own_names[name])
        for part in ("u", "v"):
            one, other = getattr(got, part).weight.grad, getattr(expected, part).weight.grad
            assert (one - other).norm() <= 1e-4 * other.norm() and other.any(), (name, part)


def test_only_the_student_is_held_and_only_factors_are_trained(family):
    branch = family.branch(EXIT)
    factors = truncated(branch, compressed_modules(family.config, EXIT))
    taught = TaughtBranch(branch, family.exits[EXIT] + 1, factors, torch.float32)
    names = [name for name, p in taught.named_parameters() if p.requires_grad]
    assert all(name.endswith((".u.weight", ".v.weight")) for name in names) and len(names) == 30
    held = sum(p.numel() for p in taught.parameters())
    thin = sum(found.u.numel() + found.v.numel() for found in factors.values())
    norms = sum(p.numel() for name, p in taught.named_parameters() if name not in names)
    assert held == thin + norms and norms < thin / 20
    assert not any(p.requires_grad for p in branch.parameters())
    graph = taught(**batch()).kl.sum()
    assert not any("Embedding" in name for name in nodes(graph.grad_fn))


def nodes(function, seen=None):
    """Names of all nodes of a graph."""
    seen = {} if seen is None else seen
    if function is not None and function not in seen:
        seen[function] = function.name()
        for other, _ in function.next_functions:
            nodes(other, seen)
    return set(seen.values())


def test_factors_at_full_rank_lose_nothing_and_come_back_as_they_were(family):
    branch = family.branch(EXIT)
    factors = truncated(branch, compressed_modules(family.config, EXIT), rank=1000)
    taught = TaughtBranch(branch, family.exits[EXIT] + 1, factors, torch.float32)
    assert taught(**batch()).kl.abs().max() < 1e-6
    for name, found in taught.factors().items():
        assert torch.equal(found.u, factors[name].u) and torch.equal(found.v, factors[name].v)


def test_frozen_parts_in_16_bits_turn_by_the_same_angles(family):
    branch = family.branch(EXIT)
    factors = truncated(branch, compressed_modules(family.config, EXIT), rank=1000)
    exact = branch.model.rotary_emb.inv_freq.clone()
    taught = TaughtBranch(branch, family.exits[EXIT] + 1, factors, torch.bfloat16)
    taught.bfloat16()  # as DeepSpeed's engine casts the student
    decoders = [*(part.decoder for part in taught._beside), taught.student.decoder]
    for decoder in decoders:
        assert next(decoder.layers.parameters()).dtype == torch.bfloat16
        assert torch.equal(decoder.rotary_emb.inv_freq, exact)


def test_factors_in_the_trunk_are_refused(family):
    branch = family.branch(EXIT)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.up_proj is not above"):
        TaughtBranch(branch, family.exits[EXIT] + 1, truncated(branch, ["model.layers.0.mlp.up_proj"]), torch.float32)


@pytest.mark.parametrize("checkpointing", [{}, {"use_reentrant": True}, {"use_reentrant": False}])
def test_gradient_checkpointing_changes_no_gradient(family, checkpointing):
    branch = family.branch(EXIT)
    factors = truncated(branch, compressed_modules(family.config, EXIT))
    gradients = []
    for checkpointed in (False, True):
        taught = TaughtBranch(copy.deepcopy(branch), family.exits[EXIT] + 1, factors, torch.float32).train()
        if checkpointed:
            taught.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        taught(**batch()).kl.sum().backward()
        gradients.append({name: p.grad for name, p in taught.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_lowers_the_divergence_and_saves_the_factors(tmp_path):
    saved = []
    trainer = recovery_run.trainer(tmp_path, {"max_steps": 80, "learning_rate": 2e-2}, lambda *args: saved.append(args))
    before = trainer.model.factors()
    trainer.train()
    rows = [row for row in trainer.state.log_history if f"{EXIT}/loss" in row]
    assert rows[0]["loss"] == pytest.approx(rows[0][f"{EXIT}/loss"], rel=1e-4)
    first, last = first_and_last(rows, f"{EXIT}/loss")
    assert last < 0.6 * first
    first, last = first_and_last(rows, f"{EXIT}/agreement")
    assert last > first + 0.2
    trainer.save_model(str(tmp_path / "family"))
    (folder, factors), *rest = saved
    assert folder == tmp_path / "family" and not rest and factors.keys() == before.keys()
    assert all(not torch.equal(factors[name].u, before[name].u) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero1", "zero2"])
def test_two_ranks_train_as_one(tmp_path, mode):
    """Rows of unlike numbers of counted tokens on each rank: the mean is over the tokens of all ranks."""
    alone = []
    trainer = recovery_run.trainer(
        tmp_path / "alone",
        {**recovery_run.DESCENT, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        lambda folder, factors: alone.append(factors),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "x"))
    run_ranks("recovery_run:main", mode, tmp_path, log=tmp_path / "log")
    together = torch.load(tmp_path / "factors.pt", weights_only=False)
    start = trainer_start(tmp_path)
    logs = json.loads((tmp_path / "logs.json").read_text())
    wanted = [row for row in trainer.state.log_history if f"{EXIT}/loss" in row]
    for got, expected in zip(logs, wanted, strict=True):
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert got["num_tokens"] == expected["num_tokens"]
    for name, found in alone[0].items():
        for part in ("u", "v"):
            moved = getattr(found, part) - getattr(start[name], part)
            error = getattr(together[name], part) - getattr(found, part)
            assert moved.norm() > 0 and error.norm() <= 1e-3 * moved.norm(), (name, part)


def trainer_start(folder: Path) -> dict[str, Factors]:
    return recovery_run.trainer(folder / "start", {}, lambda *_: None).model.factors()


def test_other_losses_need_no_logits(tmp_path):
    trainer = recovery_run.trainer(tmp_path, {}, lambda *_: None)
    assert isinstance(trainer, RecoveryTrainer)
    with pytest.raises(ValueError, match="compute_metrics"):
        trainer.compute_loss(trainer.model, batch(), return_outputs=True)
