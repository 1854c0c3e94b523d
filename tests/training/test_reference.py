"""The reference policy that shares the policy's frozen weights, against a second model loaded from disk."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import DeepSpeedPlugin
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config
from trl import GRPOConfig

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.family_trainer import freeze_others
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.options import DeepSpeedOptions
from ruyi_rl.training.reference import can_share, reference_of, shared_reference
from ruyi_rl.training.session import enter_deepspeed, release
from tests.forked_ranks import run_ranks

PROMPTS = Dataset.from_list([{"prompt": "1+" * (i % 3) + f"{i}="} for i in range(8)])
BATCH = {"input_ids": torch.arange(3, 27).view(2, 12), "labels": torch.arange(3, 27).view(2, 12)}


def storages(tensors) -> dict[str, int]:
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in tensors}


def scored(model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model(**BATCH, output="log_probs").log_probs


class CountCopiedBytes(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.total += result.nbytes
        return result


@pytest.mark.parametrize("exits", [["small"], ["medium"], ["small", "large"], None])
def test_exactly_the_frozen_parameters_are_shared(make_family, exits):
    policy = make_family().train()
    freeze_others(policy, exits)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with CountCopiedBytes() as copied:
        reference = reference_of(policy)

    own, theirs = storages(policy.named_parameters()), storages(reference.named_parameters())
    assert list(own) == list(theirs)
    assert {name for name in own if own[name] != theirs[name]} == trained
    buffers = storages(policy.named_buffers())
    assert buffers and all(buffers[name] != storage for name, storage in storages(reference.named_buffers()).items())
    # the peak: nothing that is shared was ever there twice
    held = [p for name, p in policy.named_parameters() if name in trained] + list(policy.buffers())
    assert copied.total == sum(tensor.nbytes for tensor in held)

    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert policy.training and not any(module.training for module in reference.modules())


def test_with_train_only_the_reference_owns_the_expansion_alone(make_family):
    policy = make_family().expand("small", 2).expand("large", 1).train()
    assert freeze_others(policy, ["small"], "expansion") == ["small"]
    own = ("model.expansions.0.", "model.norms.0.", "lm_head.0.")
    with CountCopiedBytes() as copied:
        reference = reference_of(policy)
    theirs = dict(reference.named_parameters())
    assert {name for name, p in policy.named_parameters() if theirs[name] is not p} == {
        name for name in theirs if name.startswith(own)
    }
    held = [tensor for name, tensor in policy.named_parameters() if name.startswith(own)] + list(policy.buffers())
    assert copied.total == sum(tensor.nbytes for tensor in held)
    start = scored(reference)
    assert all(torch.equal(scored(policy)[name], start[name]) for name in start)

    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        policy(**BATCH, exits="small").loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(scored(policy)["small"], start["small"], atol=0.1)
    assert all(torch.equal(scored(reference)[name], start[name]) for name in start)
    assert all(torch.equal(scored(policy)[name], start[name]) for name in ("medium", "large"))


def test_the_reference_stays_the_start(make_family):
    policy = make_family().train()
    stock = Family.from_pretrained(policy.config._name_or_path)
    freeze_others(policy, ["medium"])
    reference = reference_of(policy)
    start, frozen = scored(stock), {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    assert all(torch.equal(scored(reference)[name], start[name]) for name in start)

    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    policy(**BATCH, exits="medium").loss.backward()
    optimizer.step()
    policy.load_state_dict({name: tensor.clone() for name, tensor in policy.state_dict().items()})  # as a resume does
    assert not torch.allclose(scored(policy)["medium"], start["medium"], atol=0.1)
    assert all(torch.equal(scored(reference)[name], start[name]) for name in start)
    assert frozen and all(torch.equal(policy.get_parameter(name), tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("frozen", [False, True])
def test_tied_heads_stay_tied(tokenizer, frozen):
    backbone = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    policy = Family.from_scratch(backbone, {"small": 0, "large": 1}, shared_heads=True)
    assert policy.lm_head.weight is policy.model.embed_tokens.weight
    policy.lm_head.weight.requires_grad_(not frozen)
    reference = reference_of(policy)
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert (reference.lm_head.weight is policy.lm_head.weight) == frozen


@pytest.mark.parametrize("first", ["policy", "reference"])
def test_what_is_shared_stays_so_when_a_model_is_cast_in_place(make_family, first):
    """As an engine casts, which gives a parameter new storage."""
    policy = make_family()
    freeze_others(policy, ["small"])
    reference = reference_of(policy)
    for model in (policy, reference) if first == "policy" else (reference, policy):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model.to(torch.float64)
    for (name, own), theirs in zip(policy.named_parameters(), reference.parameters(), strict=True):
        assert own.dtype == theirs.dtype == torch.float64
        assert (own.data_ptr() == theirs.data_ptr()) == (not own.requires_grad), name


def config(folder, **changes):
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 6,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "beta": 0.1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            **changes,
        }
    )


@pytest.mark.parametrize(
    "changes, shared",
    [
        ({}, True),
        ({"beta": 0.0}, False),
        ({"sync_ref_model": True}, False),
        ({"cast_lm_head_to_fp32": True}, False),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, False),
    ],
)
def test_where_trl_makes_its_own_reference(make_family, tmp_path, changes, shared):
    args = config(tmp_path, **changes)
    assert can_share(args) == shared and not can_share(args, peft=True)
    beta = args.beta
    with pytest.raises(KeyError), shared_reference(make_family(), args) as reference:
        assert (reference is not None) == shared
        assert args.beta == (0.0 if shared else beta)
        raise KeyError  # the constructor's own failure
    assert args.beta == beta


@pytest.mark.parametrize("stage, shared", [(0, True), (1, True), (2, True), (3, False)])
def test_zero3_keeps_a_reference_of_its_own(tmp_path, stage, shared):
    args = config(tmp_path)
    args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": stage}})
    assert can_share(args) == shared


def share_of_digits(completions, **kwargs):
    return [sum(letter < "P" for letter in text) / max(len(text), 1) for text in completions]


def built(kind, family, tokenizer, args):
    return kind(family, share_of_digits, args, PROMPTS, exits=["medium"], processing_class=tokenizer)


@contextmanager
def reference_loaded_by_trl():
    with pytest.MonkeyPatch.context() as patch:
        never = contextmanager(lambda *_: (yield))
        patch.setattr("ruyi_rl.training.grpo_trainer.shared_reference", never, raising=False)
        yield


def losses(trainer) -> list[float]:
    rows = [row for row in trainer.state.log_history if "kl" in row]
    return [row[key] for row in rows for key in ("kl", "loss", "medium/kl", "grad_norm")]


@pytest.mark.parametrize("changes", [{}, {"bf16": True, "gradient_checkpointing": True, "num_iterations": 2}])
def test_a_run_equals_the_run_with_trls_own_reference(make_family, tokenizer, tmp_path, monkeypatch, changes):
    start = make_family().state_dict()
    with reference_loaded_by_trl():
        theirs = built(FamilyGRPOTrainer, make_family(), tokenizer, config(tmp_path / "theirs", **changes))
    assert not {p.data_ptr() for p in theirs.model.parameters()} & {p.data_ptr() for p in theirs.ref_model.parameters()}
    theirs.train()

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", None)  # no second model is loaded
    ours = built(FamilyGRPOTrainer, make_family(), tokenizer, config(tmp_path / "ours", **changes))
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-6)
    assert losses(ours)[-4] > 1e-3  # the policy has left the reference
    assert all(torch.equal(p, q) for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    assert all(torch.equal(tensor, start[name]) for name, tensor in ours.ref_model.state_dict().items())
    for own, reference in zip(ours.model.parameters(), ours.ref_model.parameters(), strict=True):
        assert (own.data_ptr() == reference.data_ptr()) == (not own.requires_grad)


def test_a_resumed_run_has_the_start_as_its_reference(make_family, tokenizer, tmp_path):
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = built(FamilyGRPOTrainer, make_family(), tokenizer, config(tmp_path, **args))
    whole.train()
    resumed = built(FamilyGRPOTrainer, make_family(), tokenizer, config(tmp_path, **args))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    start = make_family().state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in resumed.ref_model.state_dict().items())


@pytest.mark.slow
def test_under_zero_2_in_bfloat16(make_family, tmp_path):
    """On two ranks: the reference's engine casts, places and broadcasts what the policy's engine trains beside."""
    make_family().save_pretrained(tmp_path / "family")
    run_ranks("tests.training.test_reference:zero_2_runs", tmp_path, log=tmp_path / "log")
    theirs, ours = json.loads((tmp_path / "runs.json").read_text())
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    assert ours["losses"][-4] > 1e-3
    assert theirs["shared"] == [] and ours["shared"] == ours["frozen"] != []


def zero_2_runs(folder: Path) -> None:
    """One rank: a run with TRL's own reference, then one with ours."""
    deepspeed = deepspeed_config(DeepSpeedOptions(mode="zero2"), 2)
    enter_deepspeed(deepspeed)
    runs = []
    for whose, kind in ((reference_loaded_by_trl, FamilyGRPOTrainer), (nullcontext, FamilyGRPOTrainer)):
        args = config(folder / whose.__name__, deepspeed=deepspeed, bf16=True, gradient_checkpointing=True)
        with whose():
            trainer = built(kind, Family.from_pretrained(folder / "family"), byte_tokenizer(), args)
        trainer.train()
        own = dict(trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters())
        reference = storages(trainer.ref_model.module.named_parameters())
        shared = [name for name, storage in storages(own.items()).items() if storage == reference[name]]
        frozen = [name for name, parameter in own.items() if not parameter.requires_grad]
        runs.append({"losses": losses(trainer), "shared": shared, "frozen": frozen})
        release(trainer)
    if torch.distributed.get_rank() == 0:
        (folder / "runs.json").write_text(json.dumps(runs, default=float))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
