"""GRPO over every exit of a family at once, on TRL's GRPOTrainer.

What is overridden of TRL's private surface is in this class and its mixins; `partial_loss` and `reference` steer what
TRL's loss and constructor do. tests/training/test_trl_surface.py fails when TRL changes what they rely on.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import gather_object, is_peft_model
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.models.utils import unwrap_model_for_generation

from ruyi_rl.rewards.composition import Composed, Composition, compose, reward_tensor, state_tensor, states_of
from ruyi_rl.rewards.failures import RewardFailures
from ruyi_rl.rewards.scored import State
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.transformers import TransformersRollout, end_token_ids
from ruyi_rl.rollout.worker import Completion, Request, Rollout, Sampling, request_seeds
from ruyi_rl.training.accumulation import accumulating, backward
from ruyi_rl.training.advantages import group_advantages, normalized_advantages
from ruyi_rl.training.arguments import check_correction, check_token_budget
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.exit_metrics import failure_metrics
from ruyi_rl.training.family_trainer import FamilyTrainer, freeze_others
from ruyi_rl.training.grpo_logs import GRPOLogs
from ruyi_rl.training.kept_rollouts import KeptRollouts
from ruyi_rl.training.partial_loss import loss_share, mean_entropy, unreported
from ruyi_rl.training.phases import in_phase
from ruyi_rl.training.plugin_logs import column_name, metric_name
from ruyi_rl.training.policy_pass import CompletionRows, RowStatistics, packed_pass, padded_pass
from ruyi_rl.training.reference import prepared, shared_reference
from ruyi_rl.training.rows import (
    FamilySampler,
    balanced_chunks,
    block_layout,
    deepest_first,
    expand_rows,
    rows_and_tokens,
    rows_of,
)
from ruyi_rl.training.scored_batch import ScoredBatch
from ruyi_rl.training.token_budget import balanced_packs, packs_needed


class FamilyGRPOTrainer(GRPOLogs, KeptRollouts, FamilyTrainer, GRPOTrainer):
    """All chosen exits answer the same prompts; each is compared with itself and trained by TRL's own loss.

    The objective is `Σ_e w_e · L_e / Σ_e w_e`, where `L_e` is what GRPOTrainer would compute on exit e's completions
    alone: for any loss type, an exit's length or reward does not change another exit's loss.

    With `beta` the reference policy shares the parameters that are frozen with the policy (see `shared_reference`).

    Takes what GRPOTrainer takes, with a `Family` as the model and one dataset row a prompt, and:

    Args:
        reward_funcs: as for GRPOTrainer, or a `RewardScorer`, whose functions are isolated and composed as its options
            say, and run while further completions are generated.
        exits: names of the exits to train; None: all. Parameters that none of them runs through are frozen.
        train_only: `expansion`: also freeze all but the exits' expansion blocks, norms and heads; without `exits` those
            that have such blocks are trained.
        advantage_scale: see `group_advantages`.
        exit_weights: exit -> w_e; 1 where not named.
        packed: whether log-probs are computed in packs, each prompt once and nothing padded, or in padded rows.
        token_budget: tokens of a pack at most. A micro-batch of more is computed in several packs, each with its own
            backward pass, to the same gradients. None: a micro-batch is one pack.
        rollout: who generates; None: transformers' generate. Where it reports log-probs, TRL's importance correction
            (`vllm_importance_sampling_*`) weighs every exit's loss by them.
        record: called with the rows of each generation batch (see `RolloutFile`), on rank 0.
        failures: keeps what a scorer's functions failed on, and ends the training where that is too much; None: one
            that keeps nothing.

    Metrics: TRL's, averaged over the exits, and `<exit>/<metric>` for each exit; `time/<phase>`, see FamilyTrainer.
    Reward functions get the exits' names as the column `exit`.

    Raises:
        StageFailed: (in training, with a scorer) rewards cannot be computed, or fail too often.
        ValueError: batch sizes that do not fit exits and samples, too few prompts for one generation batch, or an
            option that has no meaning for several exits.
    """

    def __init__(
        self,
        model,
        reward_funcs,
        args,
        train_dataset,
        eval_dataset=None,
        *,
        exits: Sequence[str] | None = None,
        train_only: str | None = None,
        advantage_scale: str = "group",
        exit_weights: Mapping[str, float] | None = None,
        packed: bool = True,
        token_budget: int | None = None,
        rollout: Rollout | None = None,
        record: Callable[[list[dict]], None] | None = None,
        failures: RewardFailures | None = None,
        **kwargs,
    ):
        self._scorer = reward_funcs if isinstance(reward_funcs, RewardScorer) else None
        if self._scorer is not None:
            reward_funcs = self._scorer.functions
            self._failures = failures or RewardFailures(self._scorer.options)
        self.exits = deepest_first(freeze_others(model, exits, train_only), model.exits)
        self.train_only = train_only
        self.advantage_scale = advantage_scale
        exit_weights = exit_weights or {}
        self.exit_weights = {name: float(exit_weights.get(name, 1.0)) for name in self.exits}
        if unknown := [name for name in exit_weights if name not in model.exits]:
            raise ValueError(f"exit_weights: no such exit: {unknown}; this family has {list(model.exits)}")
        if min(self.exit_weights.values()) < 0 or not any(self.exit_weights.values()):
            raise ValueError(f"exit_weights {self.exit_weights} must not be negative, nor all 0")
        if args.use_adaptive_entropy and len(self.exits) > 1:
            raise ValueError("use_adaptive_entropy steers one coefficient; with several exits set entropy_coef")
        if rollout is not None and not rollout.runs_family:
            check_correction(args)
        if packed and token_budget is not None:
            check_token_budget(token_budget, args)
        self.plan = plan_batches(
            args.per_device_train_batch_size,
            args.steps_per_generation,
            args.num_generations,
            len(self.exits),
            args.world_size,
        )
        if len(train_dataset) < self.plan.prompts:
            raise ValueError(
                f"a generation batch takes {self.plan.prompts} prompts, but there are {len(train_dataset)} to train on"
            )
        self._prompt_count = len(train_dataset)
        self.packed, self.token_budget = packed, token_budget
        self._exit_ids = self._prompt_numbers = None  # of each row of the pass that is under way
        self._forwarded = None  # this micro-batch's scored tokens, while the exits' losses are read off them
        self._drawn: dict[str, tuple[int, int]] = {}  # mode -> (optimiser step, rollouts begun in it)
        self._sent_at_step: int | None = None  # optimiser step whose weights the rollout worker has
        peft = is_peft_model(model) or kwargs.get("peft_config") is not None
        with shared_reference(model, args, peft) as reference:
            super().__init__(
                model,
                reward_funcs,
                args,
                expand_rows(train_dataset, self.exits),
                None if eval_dataset is None else expand_rows(eval_dataset, self.exits),
                **kwargs,
            )
        if reference is not None:
            self.beta = args.beta
            self.ref_model = prepared(reference, self.accelerator, self.is_deepspeed_enabled)
        self.rollout = rollout or TransformersRollout(
            model, self._tokenizer.pad_token_id, end_token_ids(model, self._tokenizer)
        )
        self._record = record
        if self._scorer is not None:
            self._composition = Composition.of(self._scorer.options, self._scorer.names)
            self.reward_weights = torch.tensor(self._composition.weights)
        else:
            self._composition = Composition(tuple(self.reward_weights.tolist()), (None,) * len(self.reward_weights))

    def _get_train_sampler(self, dataset=None):
        return FamilySampler(
            self._prompt_count,
            self.plan,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset):
        plan = plan_batches(
            self.args.per_device_eval_batch_size, 1, self.num_generations_eval, len(self.exits), self.args.world_size
        )
        return FamilySampler(len(eval_dataset) // len(self.exits), plan, shuffle=False)

    def _prepare_inputs(self, generation_batch):
        """As TRL's, but its shuffle of rows over micro-batches becomes a split with all exits in each of them."""
        if not self.model.training:
            return self._split_by_exit(self._generate_and_score_completions(generation_batch), 1)[0]
        steps = self.args.steps_per_generation
        if self._step == 0:
            # Resumed from a checkpoint of another number of ranks, in the middle of rollouts that several updates use,
            # it draws anew for the rest of them.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._split_by_exit(self._generate_and_score_completions(generation_batch), steps)
        return self._buffered_inputs[self._step % steps]

    def _split_by_exit(self, batch: dict, steps: int) -> list[dict]:
        return [rows_of(batch, chunk) for chunk in balanced_chunks(batch["exit_ids"], len(self.exits), steps)]

    @in_phase("other")
    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        samples = self.num_generations if mode == "train" else self.num_generations_eval
        local = block_layout(len(inputs), len(self.exits), samples, self.accelerator.device)
        self._exit_ids, self._prompt_numbers, self._inputs = local.exit_ids, local.prompt_ids, inputs
        output = super()._generate_and_score_completions(inputs)

        world = block_layout(len(self._rewards), len(self.exits), samples, self.accelerator.device)
        rewards = self._composed.rewards
        if self.multi_objective_aggregation == "normalize_then_sum":
            columns = self._rewards.masked_fill(rewards.isnan()[:, None], torch.nan)
            weights = self.reward_weights.to(rewards.device)
            advantages = normalized_advantages(columns, weights, world.prompt_ids, world.exit_ids)
        else:
            advantages = group_advantages(rewards, world.prompt_ids, world.exit_ids, self.advantage_scale)
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
        output["exit_ids"], output["prompt_numbers"] = local.exit_ids, local.prompt_ids
        output["exit_tokens"] = self._tokens_per_exit(output, local.exit_ids)
        self._log_rewards(mode, rewards, samples)
        self._log_rollouts(mode, rewards, world, advantages, [row["exit"] for row in inputs])
        self._log_workers(mode, output)
        if self._record is not None:
            self._write_record(inputs, advantages[start : start + len(inputs)])
        return output

    def _tokens_per_exit(self, output: dict, exit_ids: torch.Tensor) -> torch.Tensor:
        """(exits,): tokens in the loss over all ranks, which token-normalised losses divide by."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        local = torch.zeros(len(self.exits), device=mask.device).index_add_(0, exit_ids, mask.sum(1).float())
        return self.accelerator.reduce(local, reduction="sum")

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """All exits' prompts go to the rollout back end in one call."""
        if images is not None:
            raise ValueError("a family generates text only")
        names = [self.exits[exit] for exit in self._exit_ids.tolist()]
        seeds = request_seeds(self.args.seed, self._next_draw(), names, prompt_ids)
        requests = [Request(*request) for request in zip(names, prompt_ids, seeds, strict=True)]
        self.rollout.statistics()  # what an evaluation has left there
        start = time.monotonic()
        with self.phases("sync"), self._rollout_weights():
            ready = time.monotonic()
            with self.phases("rollout"):
                completions = self._generate_scored(requests, num_generations)
        self.check_stop()  # after minutes of generating, and before as many of updating
        self._rollout_times = {"rollout/sync_seconds": ready - start, "rollout/seconds": time.monotonic() - ready}
        self._rolled_out = list(zip(requests, completions, strict=True))
        self._completion_shape = torch.tensor(
            [[len(completion.token_ids), not completion.finished] for completion in completions],
            dtype=torch.float32,
            device=self.accelerator.device,
        )
        log_probs = [completion.log_probs for completion in completions]
        # TRL corrects for an engine's distribution, whichever engine it is, where this says so.
        self.use_vllm = None not in log_probs
        return [completion.token_ids for completion in completions], log_probs if self.use_vllm else None

    def _generate_scored(self, requests: list[Request], samples: int) -> list[Completion]:
        """Generates, and with a scorer has whole groups scored meanwhile."""
        if self._scorer is None:
            return self.rollout.generate(requests, self._sampling())
        self._batch = ScoredBatch(self._scorer, self._inputs, samples, self.state, self._completions_of)
        try:
            completions = self.rollout.generate(
                requests, self._sampling(), self._batch.arrived if self._decodes_plainly else None
            )
        except BaseException:
            self._batch.cancel()
            raise
        self._batch.rollouts_ended = time.monotonic()
        return completions

    @property
    def _decodes_plainly(self) -> bool:
        """Whether TRL decodes completions and does nothing more to them, so that they need not wait for it."""
        parsed = any(getattr(self._tokenizer, name, None) for name in ("response_template", "response_schema"))
        return not parsed and not self.tools

    def _completions_of(self, token_ids: Sequence[list[int]]) -> list:
        """Completions as TRL makes them of token ids."""
        texts = self.processing_class.batch_decode(token_ids, skip_special_tokens=True)
        if is_conversational({"prompt": self._inputs[0]["prompt"]}):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return texts

    @contextmanager
    def _rollout_weights(self):
        """The rollout worker has this step's weights: sent to it, or, where it runs the family, unsharded."""
        if self.rollout.runs_family:
            with unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as family:
                self.rollout.update_weights(family)
                yield
            return
        if self._sent_at_step != self.state.global_step:
            self.rollout.update_weights(self.accelerator.unwrap_model(self.model_wrapped))
            self._sent_at_step = self.state.global_step
        yield

    def _sampling(self) -> Sampling:
        return Sampling(
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    def _next_draw(self) -> tuple[str, int, int]:
        """(mode, optimiser step, number of the rollout in it): what a resumed run counts the same way."""
        mode, step = "train" if self.model.training else "eval", self.state.global_step
        before, count = self._drawn.get(mode, (step, 0))
        count = count + 1 if before == step else 1
        self._drawn[mode] = step, count
        return mode, step, count

    @in_phase("reward")
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        mode = "train" if self.model.training else "eval"
        start = time.monotonic()
        if self._scorer is None:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            states = states_of(rewards)
        else:
            rewards, states = self._collect_rewards(mode, completions, completion_ids_list)
        # A batch system's signal goes to all processes: a dying program may have judged what was judged after it.
        self.check_stop()
        self._metrics[mode]["rewards/seconds"].append(time.monotonic() - start)
        self._composed: Composed = compose(rewards, states, self._composition)
        self._rewards = self._composed.columns
        return self._rewards

    def _collect_rewards(self, mode, completions, token_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, functions) of all ranks: rewards and states, see `compose`; every rank ends where another does."""
        scored, share = self._batch.collect(completions, token_ids)
        shares = gather_object([share])
        self._failures.take(shares, mode, self.state.global_step)
        for column, values in scored.extra.items():
            self._pending_extra_logs[column_name(column, self._scorer.names)].extend(values)
        for name, values in scored.metrics.items():
            self._pending_metrics[metric_name(name, self.exits)].extend(values)
        metrics = self._metrics[mode]
        metrics["rewards/overlapped_seconds"].append(self._batch.overlapped)
        for name, value in failure_metrics(shares, self.exits).items():
            metrics[name].append(value)
        device = self.accelerator.device
        rewards = self.accelerator.gather(reward_tensor(scored).to(device))
        states = self.accelerator.gather(state_tensor(scored).to(device))
        for index, name in enumerate(self._scorer.names):
            if self._scorer.options.functions[name].gate is not None:
                asked = (states[:, index] != State.CLOSED) & (states[:, index] != State.UNDECIDED)
                metrics[f"rewards/{name}/asked"].append(asked.float().mean().item())
        return rewards, states

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **multimodal,
    ):
        """Log-probs of each row at its own exit, in passes that every rank has equally many of."""
        if self._forwarded is not None:
            return self._forwarded
        rows = CompletionRows(input_ids, attention_mask, logits_to_keep, self._prompt_numbers, self._exit_ids)
        parts = self._parts(rows, max(len(input_ids) // (batch_size or len(input_ids)), 1))
        with self.phases(self.scoring_phase(model)):
            scored = [self._pass(model, rows.select(part)) for part in parts]
        found = RowStatistics.joined(scored, parts)
        return found.log_probs, found.entropies if compute_entropy else None, None

    def _pass(self, model, rows: CompletionRows) -> RowStatistics:
        run = packed_pass if self.packed else padded_pass
        with self.accelerator.autocast():
            return run(model, rows, self.exits, self.temperature)

    def _parts(self, rows: CompletionRows, passes: int) -> list[torch.Tensor]:
        """Row indices of each pass: packs under the token budget, or `passes` parts where there is none."""
        device = rows.input_ids.device
        if not self.packed:
            return balanced_chunks(rows.exit_ids, len(self.exits), passes)
        if passes == 1 and self.token_budget is None:
            return [torch.arange(len(rows.input_ids), device=device)]
        blocks = rows.blocks(len(self.exits))
        count = passes
        if self.token_budget is not None:
            needed = torch.tensor([packs_needed(blocks, self.token_budget)], device=device)
            # As many on every rank: under ZeRO-3 each pass is a series of collectives.
            count = int(self.accelerator.gather(needed).max())
        packs = balanced_packs(blocks, count, self.token_budget)
        return [torch.tensor(pack, device=device) for pack in packs]

    def _compute_loss(self, model, inputs):
        """TRL's loss of each exit's rows, from one forward of all, or of one pack after the other."""
        rows = CompletionRows(
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            inputs["prompt_numbers"],
            inputs["exit_ids"],
        )
        parts = self._parts(rows, 1)
        if len(parts) == 1:
            losses, metrics = self._exit_losses(model, inputs, self._pass(model, rows.select(parts[0])), parts[0])
        else:
            losses, metrics = self._losses_in_parts(model, inputs, rows, parts)
        self.saw_micro_batch(inputs, dict(zip(self.exits, losses)))
        mode = "train" if self.model.training else "eval"
        # TRL has divided by the micro-batches of an update; the metric is the mean over them and over ranks.
        scale = self.current_gradient_accumulation_steps if mode == "train" else 1
        means = self.accelerator.reduce(losses.detach() * scale, "mean").tolist()
        for name, values, mean in zip(self.exits, metrics, means, strict=True):
            for key, value in values.items():
                self._metrics[mode][f"{name}/{key}"].append(value)
                self._metrics[mode][key].append(value)
            self._metrics[mode][f"{name}/loss"].append(mean)
        return losses @ self._loss_weights(losses)

    def _losses_in_parts(self, model, inputs, rows: CompletionRows, parts) -> tuple[torch.Tensor, list[dict]]:
        """What `_exit_losses` gives of the whole micro-batch, with the graph of the last part only: the others have
        had their backward, since one part's graph is what the token budget has memory for."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        whole = rows_and_tokens(mask, inputs["exit_ids"], len(self.exits)).clamp(min=1)
        scores, losses = [], 0.0
        for number, chosen in enumerate(parts):
            early = number < len(parts) - 1 and torch.is_grad_enabled()
            with accumulating(self.accelerator, model) if early else nullcontext():
                scored = self._pass(model, rows.select(chosen))
                shares = rows_and_tokens(mask[chosen], inputs["exit_ids"][chosen], len(self.exits)) / whole
                with unreported(self):
                    loss, _ = self._exit_losses(model, inputs, scored, chosen, shares.tolist())
                if early:
                    backward(self.accelerator, loss @ self._loss_weights(loss))
            losses = losses + (loss.detach() if early else loss)
            scores.append(RowStatistics(scored.log_probs.detach(), scored.entropies.detach()))
        with torch.no_grad():
            everything = RowStatistics.joined(scores, parts)
            _, metrics = self._exit_losses(model, inputs, everything, torch.arange(len(mask), device=mask.device))
        return losses, metrics

    def _loss_weights(self, like: torch.Tensor) -> torch.Tensor:
        """(exits,): w_e / Σ w."""
        weights = torch.tensor([self.exit_weights[name] for name in self.exits], dtype=like.dtype, device=like.device)
        return weights / weights.sum()

    def _exit_losses(
        self, model, inputs, scored: RowStatistics, chosen: torch.Tensor, shares=None
    ) -> tuple[torch.Tensor, list[dict[str, float]]]:
        """(exits,): the contribution of some rows to each exit's loss; and TRL's metrics of them, one mapping an exit.

        Args:
            scored: of the chosen rows.
            chosen: indices of rows of `inputs`.
            shares: of the micro-batch's rows, and of its tokens, that are chosen; for each exit. None: all of them.
        """
        mode = "train" if self.model.training else "eval"
        outer, losses, metrics = self._metrics, [], []
        for exit in range(len(self.exits)):
            own = torch.nonzero(inputs["exit_ids"][chosen] == exit).flatten()
            part = rows_of(inputs, chosen[own])
            part["num_items_in_batch"] = inputs["exit_tokens"][exit]
            self._forwarded = scored.log_probs[own], scored.entropies[own], None
            self._metrics = {mode: defaultdict(list)}
            bonus = 0.0 if shares is None else self._entropy_bonus(part, self._forwarded[1], mode)
            loss = super()._compute_loss(model, part)
            if shares is not None:
                share = loss_share(self.loss_type, shares[0][exit], shares[1][exit])
                # TRL's bonus is a mean over tokens whatever the loss type is a mean over.
                loss = share * loss + (share - shares[1][exit]) * bonus
            losses.append(loss)
            metrics.append({key: values[-1] for key, values in self._metrics[mode].items()})
            self._forwarded = None
        self._metrics = outer
        return torch.stack(losses), metrics

    def _entropy_bonus(self, part, entropies: torch.Tensor, mode: str) -> torch.Tensor | float:
        """What TRL will take off the part's loss for its entropy."""
        if not self._entropy_bonus_enabled:
            return 0.0
        used = not self.use_adaptive_entropy or self._last_world_entropy <= self.args.entropy_target
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1.0
        mask = part["completion_mask"] * part.get("tool_mask", 1)
        return (self.entropy_coef if used else 0.0) * mean_entropy(entropies, mask) / steps
