"""GRPO over a family against TRL's GRPOTrainer on stock branches."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from ruyi_rl.family.weights import branch_sources
from ruyi_rl.rollout.worker import Completion, ExitStatistics
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
PASSES = [*((loss_type, True) for loss_type in LOSSES), ("dapo", False)]  # packed, and padded as the reference of it
PROMPTS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": "1+" * (i % 3) + f"{i}="}], "answer": str(i)} for i in range(12)]
)
EXITS = ("large", "medium", "small")


def share_of_digits(completions, **kwargs):
    """A reward that untrained models spread over."""
    texts = [message[0]["content"] for message in completions]
    return [sum(letter < "P" for letter in text) / max(len(text), 1) for text in texts]


def config(folder, **changes):
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 24,
            "num_generations": 4,
            "max_completion_length": 6,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "temperature": 0.9,
            **changes,
        }
    )


def fixed_batch(rows: int, vocabulary: int = 200, exits: int = 1, beta: float = 0.0) -> dict:
    """What the trainers compute a loss from: padded prompts and completions, off-policy log-probs."""
    generator = torch.Generator().manual_seed(4)
    width, length = 7, 9
    prompt_mask, completion_mask = torch.ones(rows, width).long(), torch.ones(rows, length).long()
    for row in range(rows):
        prompt_mask[row, : row % 4] = 0
        completion_mask[row, length - row % 5 :] = 0
    batch = {
        "prompt_ids": torch.randint(3, vocabulary, (rows, width), generator=generator),
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(3, vocabulary, (rows, length), generator=generator),
        "completion_mask": completion_mask,
        "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": completion_mask.sum(),
        "old_per_token_logps": -5 + torch.randn(rows, length, generator=generator),
    }
    if beta:
        batch["ref_per_token_logps"] = -5 + torch.randn(rows, length, generator=generator)
    return batch


def for_family(batch: dict, exits: int) -> dict:
    rows = len(batch["prompt_ids"])
    exit_ids = torch.arange(exits).repeat_interleave(rows // exits)
    tokens = torch.zeros(exits).index_add_(0, exit_ids, batch["completion_mask"].sum(1).float())
    return {**batch, "exit_ids": exit_ids, "exit_tokens": tokens, "prompt_numbers": torch.arange(rows)}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def trained(trainer, batch):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("loss_type, packed", PASSES)
@pytest.mark.parametrize("beta, level", [(0.0, "token"), (0.1, "token"), (0.1, "sequence")])
def test_one_exit_equals_trl(make_family, tokenizer, tmp_path, loss_type, packed, beta, level):
    if loss_type == "vespo" and level == "sequence":
        pytest.skip("TRL defines vespo on tokens")
    family = make_family(exits={"large": 3})
    stock = family.branch("large")
    stock.save_pretrained(tmp_path / "stock")
    stock.config._name_or_path = str(tmp_path / "stock")
    options = {"loss_type": loss_type, "beta": beta, "importance_sampling_level": level, "delta": 1.4}
    if loss_type in ("cispo", "vespo", "sapo"):
        options.pop("delta")
    if loss_type == "cispo":
        options["epsilon_high"] = 2.0
    common = {"reward_funcs": share_of_digits, "train_dataset": PROMPTS, "processing_class": tokenizer}
    ours = FamilyGRPOTrainer(model=family, args=config(tmp_path / "a", **options), packed=packed, **common)
    theirs = GRPOTrainer(model=stock, args=config(tmp_path / "b", **options), **common)
    batch = fixed_batch(24, beta=beta)
    loss = trained(ours, for_family(batch, 1))
    assert loss == pytest.approx(trained(theirs, dict(batch)), abs=1e-6)
    grown = family.branch("large")
    for name, parameter in family.named_parameters():
        dict(grown.named_parameters())[_stock_name(name)].grad = parameter.grad
    for name, gradient in gradients(stock).items():
        torch.testing.assert_close(gradients(grown)[name], gradient, atol=1e-6, rtol=1e-4)


def _stock_name(name: str) -> str:
    return name.replace("model.norms.0.", "model.norm.").replace("lm_head.0.", "lm_head.")


@pytest.mark.parametrize("loss_type, packed", PASSES)
def test_every_exit_gets_trls_loss_of_its_own_rows(make_family, tokenizer, tmp_path, loss_type, packed):
    weights = {"large": 2.0, "small": 0.5}
    family = make_family()
    ours = FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=config(tmp_path / "family", loss_type=loss_type),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        exit_weights=weights,
        packed=packed,
    )
    batch = fixed_batch(24)
    loss = trained(ours, for_family(batch, 3))
    expected = 0.0
    for index, name in enumerate(EXITS):
        rows = slice(index * 8, index * 8 + 8)
        part = {key: value[rows] for key, value in batch.items() if key != "num_items_in_batch"}
        part["num_items_in_batch"] = part["completion_mask"].sum()
        theirs = GRPOTrainer(
            model=family.branch(name),
            reward_funcs=share_of_digits,
            args=config(tmp_path / name, loss_type=loss_type, per_device_train_batch_size=8),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
        )
        expected += weights.get(name, 1.0) / 3.5 * trained(theirs, part)
    assert loss == pytest.approx(expected, abs=1e-6)
    logged = ours._metrics["train"]
    for name in EXITS:
        assert f"{name}/entropy" in logged and f"{name}/loss" in logged


def test_a_run_reports_every_exit(make_family, tokenizer, tmp_path):
    family = make_family()
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    seen = []

    def reward(completions, exit, answer, **kwargs):
        seen.extend(zip(exit, answer))
        return share_of_digits(completions)

    trainer = FamilyGRPOTrainer(
        model=family,
        reward_funcs=reward,
        args=config(
            tmp_path, beta=0.05, gradient_accumulation_steps=2, num_iterations=2, per_device_train_batch_size=12
        ),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in EXITS:
        for key in (
            "reward",
            "reward_std",
            "rewards/reward/mean",
            "completions/mean_length",
            "completions/clipped_ratio",
            "dead_groups",
            "unscored",
            "kl",
            "entropy",
            "clip_ratio/region_mean",
            "loss",
        ):
            assert f"{name}/{key}" in logged, f"{name}/{key}"
    mean = sum(logged[f"{name}/reward"] for name in EXITS) / 3
    assert logged["reward"] == pytest.approx(mean, abs=1e-6)
    # every prompt was answered by every exit G times
    assert {(exit, answer): seen.count((exit, answer)) for exit, answer in seen} == {
        (exit, answer): 4 for exit in EXITS for answer in {answer for _, answer in seen}
    }
    moved = [name for name, tensor in family.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) == len(before)


def test_same_seed_same_run(make_family, tokenizer, tmp_path):
    runs = []
    for attempt in range(2):
        family = make_family()
        torch.manual_seed(attempt)  # the run's own seed decides, not what came before
        args = config(tmp_path / str(attempt), seed=5)
        trainer = FamilyGRPOTrainer(
            model=family, reward_funcs=share_of_digits, args=args, train_dataset=PROMPTS, processing_class=tokenizer
        )
        trainer.train()
        runs.append((family.state_dict(), [row.get("reward") for row in trainer.state.log_history]))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(tensor, runs[1][0][name]) for name, tensor in runs[0][0].items())


def test_only_chosen_exits_move(make_family, tokenizer, tmp_path):
    family = make_family()
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    trainer = FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=config(tmp_path, per_device_train_batch_size=8),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        exits=["medium"],
    )
    trainer.train()
    moved = {name for name, tensor in family.state_dict().items() if not torch.equal(tensor, before[name])}
    private = ("model.eelayers.1", "model.norms.1", "lm_head.1")
    assert moved and all(name.startswith(("model.embed_tokens", "model.layers.0", *private)) for name in moved)
    assert any(name.startswith(private) for name in moved)


def test_missing_rewards_are_left_out(make_family, tokenizer, tmp_path):
    def reward(completions, **kwargs):
        values = share_of_digits(completions)
        return [None if index % 4 == 0 else value for index, value in enumerate(values)]

    trainer = FamilyGRPOTrainer(
        model=make_family(),
        reward_funcs=reward,
        args=config(tmp_path, max_steps=1),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert all(logged[f"{name}/unscored"] == 0.25 for name in EXITS)


class Parrot:
    """A back end that returns set completions; stands in for any engine behind the interface."""

    name = "parrot"
    runs_family = False
    updates = 0

    def __init__(self, log_probs=None):
        self.log_probs, self.asked = log_probs, []

    def generate(self, requests, sampling):
        self.asked.append(requests)
        return [
            Completion([70 + index % 7, 71], finished=index % 2 == 0, log_probs=self.log_probs)
            for index in range(len(requests))
        ]

    def update_weights(self, family):
        self.updates += 1

    def statistics(self):
        return {name: ExitStatistics(tokens=50, seconds=2.0, sync_seconds=0.5, failures=1) for name in EXITS}

    def health(self):
        return []

    def close(self):
        pass


def test_micro_batches_do_not_change_the_update(make_family, tokenizer, tmp_path):
    after = []
    for size, steps in ((24, 1), (6, 4), (3, 8)):
        family = make_family()
        args = config(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            loss_type="dapo",
        )
        trainer = FamilyGRPOTrainer(
            model=family,
            reward_funcs=share_of_digits,
            args=args,
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            rollout=Parrot(),
        )
        trainer.train()
        after.append(family.state_dict())
    for name, tensor in after[0].items():
        for other in after[1:]:
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4)


def trained_with(make_family, tokenizer, folder, **changes):
    family = make_family()
    trainer = FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=config(folder, **changes),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def test_exit_losses_are_on_the_scale_of_the_loss(make_family, tokenizer, tmp_path):
    for size, steps in ((24, 1), (3, 8)):
        trainer = trained_with(
            make_family,
            tokenizer,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            beta=0.1,
            num_iterations=1,
        )
        logged = trainer.state.log_history[0]
        assert logged["loss"] == pytest.approx(sum(logged[f"{name}/loss"] for name in EXITS) / 3, abs=1e-4)


def test_several_updates_a_rollout(make_family, tokenizer, tmp_path):
    """steps_per_generation > gradient_accumulation_steps: the second update is off-policy, and is clipped."""
    trainer = trained_with(
        make_family,
        tokenizer,
        tmp_path,
        per_device_train_batch_size=12,
        steps_per_generation=4,
        gradient_accumulation_steps=1,
        max_steps=4,
        learning_rate=0.05,
    )
    clipped = [[row[f"{name}/clip_ratio/region_mean"] for name in EXITS] for row in trainer.state.log_history[:4]]
    assert max(clipped[0]) == 0 and min(max(row) for row in clipped[1:]) > 0
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(rewards) == 1  # one rollout for the four updates


def test_bf16_and_gradient_checkpointing(make_family, tokenizer, tmp_path):
    trainer = trained_with(make_family, tokenizer, tmp_path, bf16=True, gradient_checkpointing=True, beta=0.01)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    assert trainer.state.log_history[1]["grad_norm"] > 0


def test_resumed_passes_draw_what_the_whole_run_draws(make_family, tokenizer, tmp_path):
    """Twelve prompts, four a step: resumed in the second pass over them."""
    size = {"per_device_train_batch_size": 48, "max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = trained_with(make_family, tokenizer, tmp_path, **size)
    family = make_family()
    resumed = FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=config(tmp_path, **size),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), family.parameters(), strict=True))


def test_norms_do_not_decay(make_family, tokenizer, tmp_path):
    trainer = FamilyGRPOTrainer(
        model=make_family(),
        reward_funcs=share_of_digits,
        args=config(tmp_path),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
    )
    family = trainer.model
    decayed = set(trainer.get_decay_parameter_names(family))
    for name in EXITS:
        stock = family.branch(name)
        sources = branch_sources(family.config, name, [n for n, _ in stock.named_parameters()])
        theirs = {sources[n] for n in GRPOTrainer.get_decay_parameter_names(trainer, stock)}
        assert theirs == decayed & set(sources.values())


@pytest.mark.parametrize("options", [{"exits": ["large", "huge"]}, {"exit_weights": {"huge": 1.0}}, {"exits": []}])
def test_unknown_exits_are_refused(make_family, tokenizer, tmp_path, options):
    with pytest.raises(ValueError, match="no such exit"):
        FamilyGRPOTrainer(
            model=make_family(),
            reward_funcs=share_of_digits,
            args=config(tmp_path),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
            **options,
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"per_device_train_batch_size": 20}, "multiple of the 3 exits"),
        ({"per_device_train_batch_size": 18, "num_generations": 6, "gradient_accumulation_steps": 5}, None),
        ({"per_device_train_batch_size": 240}, "takes 20 prompts, but there are 12"),
        ({"use_adaptive_entropy": True}, "adaptive"),
    ],
)
def test_batches_that_do_not_fit_are_refused(make_family, tokenizer, tmp_path, changes, message):
    def build():
        return FamilyGRPOTrainer(
            model=make_family(),
            reward_funcs=share_of_digits,
            args=config(tmp_path, **changes),
            train_dataset=PROMPTS,
            processing_class=tokenizer,
        )

    if message is None:
        assert build().plan.prompts == 5
        return
    with pytest.raises(ValueError, match=message):
        build()
