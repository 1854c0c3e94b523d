"""A micro-batch in several packs has the loss, gradients and metrics that it has in one, whatever TRL's loss."""

from collections import defaultdict

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from ruyi_rl.rollout.worker import Completion
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.partial_loss import loss_share, mean_entropy, unreported

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
PROMPTS = Dataset.from_list([{"prompt": "1+" * (i % 5) + f"{i}="} for i in range(12)])
EXITS, ROWS, WIDTH, LENGTH = 3, 18, 7, 9


def share_of_digits(completions, **kwargs):
    return [sum(letter < "P" for letter in text) / max(len(text), 1) for text in completions]


def trainer_of(family, tokenizer, folder, rollout=None, token_budget=None, packed=True, **changes):
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS,
        "num_generations": 3,
        "max_completion_length": LENGTH,
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
    return FamilyGRPOTrainer(
        model=family,
        reward_funcs=share_of_digits,
        args=GRPOConfig(**args),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout=rollout,
        token_budget=token_budget,
        packed=packed,
    )


def micro_batch(ratios=0) -> dict:
    """Two prompts, three exits, three samples of uneven lengths; off-policy, with a tool's tokens left out.

    Args:
        ratios: columns of an engine's importance ratios; 0: none.
    """
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    numbers = torch.arange(ROWS) // 3 % 2
    prompts = torch.randint(3, 200, (2, WIDTH), generator=generator)
    prompt_mask = torch.tensor([[1] * WIDTH, [0] * 4 + [1] * (WIDTH - 4)])
    lengths = torch.tensor([9, 2, 5, 1, 8, 3, 7, 0, 6, 4, 9, 1, 0, 0, 3, 9, 2, 5])
    completion_mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    tool_mask = torch.ones(ROWS, LENGTH).long()
    tool_mask[4, 2:5] = 0
    tool_mask[9, 1:3] = 0
    counted = (completion_mask * tool_mask).sum(1).float()
    exit_ids = torch.arange(EXITS).repeat_interleave(ROWS // EXITS)
    return {
        "prompt_ids": prompts[numbers],
        "prompt_mask": prompt_mask[numbers],
        "completion_ids": torch.randint(3, 200, (ROWS, LENGTH), generator=generator),
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": normal(ROWS),
        "old_per_token_logps": -6 + 0.5 * normal(ROWS, LENGTH),
        "ref_per_token_logps": -6 + 0.5 * normal(ROWS, LENGTH),
        "num_items_in_batch": counted.sum(),
        "exit_ids": exit_ids,
        "exit_tokens": torch.zeros(EXITS).index_add_(0, exit_ids, counted),
        "prompt_numbers": numbers,
        **({"importance_sampling_ratio": normal(ROWS, ratios).exp()} if ratios else {}),
    }


def measured(trainer, batch, packed, budget):
    """Loss, gradients and metrics; and into how many packs the micro-batch went."""
    passes = []
    run = type(trainer)._pass
    trainer.packed, trainer.token_budget = packed, budget
    trainer._pass = lambda model, rows: passes.append(len(rows.input_ids)) or run(trainer, model, rows)
    trainer.model.train().zero_grad()
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    assert sum(passes) == ROWS
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    return loss.item(), gradients, dict(trainer._metrics["train"]), len(passes)


def assert_same(found, wanted):
    assert found[0] == pytest.approx(wanted[0], abs=1e-6, rel=1e-5)
    for name, gradient in wanted[1].items():
        error = (found[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error <= 1e-4, f"{name}: {error}"
    assert found[2].keys() == wanted[2].keys()
    for name, values in wanted[2].items():
        assert found[2][name] == pytest.approx(values, abs=1e-6, rel=1e-4, nan_ok=True), name


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_packs_add_up_to_the_micro_batch(make_family, tokenizer, tmp_path, loss_type, level):
    """With beta, entropy bonus, an engine's importance ratios and a tool's tokens."""
    if loss_type == "vespo" and level == "sequence":
        pytest.skip("TRL defines vespo on tokens")
    trainer = trainer_of(
        make_family(),
        tokenizer,
        tmp_path,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.1,
        entropy_coef=0.05,
        epsilon_high=2.0 if loss_type == "cispo" else 0.2,
    )
    trainer.use_vllm = True
    batch = micro_batch(ratios=1 if level == "sequence" else LENGTH)
    wanted = measured(trainer, batch, packed=False, budget=None)
    whole = measured(trainer, batch, packed=True, budget=None)
    assert wanted[3] == whole[3] == 1
    assert_same(whole, wanted)
    for budget, count in ((60, 2), (1, 6)):
        found = measured(trainer, batch, packed=True, budget=budget)
        assert found[3] >= count
        assert_same(found, wanted)
    assert any("policy_loss" in name for name in wanted[2]) and any("kl" in name for name in wanted[2])


def test_one_exits_adaptive_entropy_is_steered_as_by_one_pass(make_family, tokenizer, tmp_path):
    trainer = trainer_of(
        make_family(exits={"large": 3}),
        tokenizer,
        tmp_path,
        use_adaptive_entropy=True,
        entropy_target=100.0,
        entropy_coef_delta=0.01,
    )
    batch = micro_batch() | {"exit_ids": torch.zeros(ROWS).long()}
    batch["exit_tokens"] = batch["num_items_in_batch"][None]
    after = []
    for budget in (None, 60):
        trainer.entropy_coef, trainer._last_world_entropy = 0.05, 1.0
        found = measured(trainer, batch, packed=True, budget=budget)
        after.append((*found[:3], trainer.entropy_coef, trainer._last_world_entropy))
    assert_same(after[1], after[0])
    assert after[1][3] == after[0][3] == pytest.approx(0.06)
    assert after[1][4] == pytest.approx(after[0][4], rel=1e-5)


class Uneven:
    """A back end with completions of set, uneven lengths and log-probs of its own."""

    name = "uneven"
    runs_family = False

    def generate(self, requests, sampling):
        made = [[70 + index % 7] * (1 + index * 5 % 8) for index in range(len(requests))]
        return [Completion(ids, finished=True, log_probs=[-3.0 - 0.1 * len(ids)] * len(ids)) for ids in made]

    def update_weights(self, family):
        pass

    def statistics(self):
        return {}

    def health(self):
        return []

    def close(self):
        pass


def test_a_training_under_a_budget_is_the_training_without_one(make_family, tokenizer, tmp_path):
    """Old log-probs, reference, several updates a rollout, accumulated micro-batches: through TRL's own loop."""
    ends = []
    for packed, budget in ((False, None), (True, None), (True, 40)):
        family = make_family()
        trainer = trainer_of(
            family,
            tokenizer,
            tmp_path / f"{packed}-{budget}",
            rollout=Uneven(),
            token_budget=budget,
            packed=packed,
            steps_per_generation=4,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=9,
            max_steps=2,
            beta=0.1,
            optim="sgd",
            learning_rate=0.3,
            lr_scheduler_type="constant",
        )
        trainer.train()
        logs = [row for row in trainer.state.log_history if "train_runtime" not in row]
        timed = ("time/", "step_time", "seconds", "tokens_per_second")
        ends.append(
            (family.state_dict(), [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in logs])
        )
    for weights, logs in ends[1:]:
        for name, tensor in ends[0][0].items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)
        for found, wanted in zip(logs, ends[0][1], strict=True):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert found[name] == pytest.approx(value, abs=1e-4, rel=1e-3, nan_ok=True), name


def test_an_evaluation_under_a_budget_has_the_loss_without_one(make_family, tokenizer, tmp_path):
    trainer = trainer_of(make_family(), tokenizer, tmp_path, loss_type="bnpo", beta=0.1, entropy_coef=0.05)
    trainer.model.eval()
    found = []
    for budget in (None, 60):
        trainer.token_budget = budget
        with torch.no_grad():
            found.append(trainer.compute_loss(trainer.model, micro_batch()).item())
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_graph_of_a_pack_goes_before_the_next_is_built(make_family, tokenizer, tmp_path):
    """Or the budget would not bound the memory."""
    trainer = trainer_of(make_family(), tokenizer, tmp_path)
    alive, run = [], trainer._pass

    def recorded(model, rows):
        gradient = trainer.model.get_input_embeddings().weight.grad
        alive.append(0 if gradient is None else gradient.norm().item())
        return run(model, rows)

    trainer._pass, trainer.token_budget = recorded, 60
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, micro_batch())
    # The gradients of the packs before are there when the next begins.
    assert len(alive) >= 2 and alive[0] == 0 and all(alive[1:]) and len(set(alive)) == len(alive)


def test_shares_follow_what_the_loss_is_a_mean_over():
    assert {loss: loss_share(loss, 0.25, 0.5) for loss in LOSSES} == {
        **dict.fromkeys(["grpo", "sapo", "dr_grpo", "luspo"], 0.25),
        "bnpo": 0.5,
        **dict.fromkeys(["dapo", "cispo", "vespo"], 1.0),
    }


def test_what_is_unreported_leaves_no_state_and_asks_no_rank():
    class Trainer:
        entropy_coef, _last_world_entropy, _entropy_window_stats = 0.1, 2.0, None

    class Accelerator:
        num_processes = 2

        def gather(self, tensor):
            raise AssertionError

        reduce = gather

    trainer, accelerator = Trainer(), Accelerator()
    trainer.accelerator = accelerator
    with pytest.raises(KeyError), unreported(trainer):
        assert trainer.accelerator.num_processes == 2
        assert trainer.accelerator.gather(torch.ones(2)).tolist() == [1, 1]
        assert trainer.accelerator.reduce(torch.ones(2), reduction="sum").tolist() == [1, 1]
        trainer.entropy_coef, trainer._last_world_entropy, trainer._entropy_window_stats = 5.0, 5.0, torch.ones(2)
        raise KeyError
    assert trainer.accelerator is accelerator
    assert (trainer.entropy_coef, trainer._last_world_entropy, trainer._entropy_window_stats) == (0.1, 2.0, None)


def test_mean_entropy_counts_what_the_mask_counts():
    entropies, mask = torch.tensor([[1.0, 2.0], [3.0, 100.0]]), torch.tensor([[1, 1], [1, 0]])
    assert mean_entropy(entropies, mask) == 2 and mean_entropy(entropies, 0 * mask) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"token_budget": 0}, "at least 1 token, not 0"),
        ({"token_budget": -5}, "at least 1 token, not -5"),
        ({"token_budget": 100, "top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5"),
    ],
)
def test_a_budget_without_meaning_is_refused(make_family, tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(make_family(), tokenizer, tmp_path, **options)
