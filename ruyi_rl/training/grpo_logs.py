"""What a GRPO trainer of a family reports of its rollouts."""

from __future__ import annotations

import math

import torch
from accelerate.utils import gather_object
from trl.trainer.utils import nanstd

from ruyi_rl.training.exit_metrics import engine_mismatch, rollout_metrics, worker_metrics
from ruyi_rl.training.plugin_logs import of_one_type


class GRPOLogs:
    """Mixed into FamilyGRPOTrainer: fills TRL's metrics and tables after each generation batch."""

    def _log_rewards(self, mode, rewards, samples) -> None:
        """Puts the composed rewards in the place of TRL's, which knows no failures, gates and clips."""
        metrics = self._metrics[mode]
        metrics["reward"][-1] = rewards.nanmean().item()
        metrics["reward_std"][-1] = nanstd(rewards).item()
        if self.multi_objective_aggregation == "sum_then_normalize":
            spread = nanstd(rewards.view(-1, samples), dim=1).repeat_interleave(samples)
            metrics["frac_reward_zero_std"][-1] = torch.isclose(spread, torch.zeros_like(spread)).float().mean().item()

    def _log_rollouts(self, mode, rewards, layout, advantages, exit_names) -> None:
        lengths, truncated = self.accelerator.gather(self._completion_shape).unbind(1)
        metrics = rollout_metrics(
            rewards, self._rewards, self.reward_func_names, lengths, truncated, layout.prompt_ids, layout.exit_ids
        )
        for exit, values in metrics.items():
            for key, value in values.items():
                self._metrics[mode][f"{self.exits[exit]}/{key}"].append(value)
        logged = self._logs["advantages"]  # TRL has put its own there, which compare across nothing we asked for
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        self._logs["extra"]["exit"].extend(gather_object(exit_names))
        for column in self._logs["extra"].values():  # of all ranks, and of the steps before that it still holds
            fitted = of_one_type(column)
            column.clear()
            column.extend(fitted)

    def _log_workers(self, mode, output) -> None:
        """Each exit's worker: speed, syncs, and how far its log-probs are from the trainer's."""
        metrics = worker_metrics(gather_object([self.rollout.statistics()]))
        policy, sampled = output.get("old_per_token_logps"), output.get("sampling_per_token_logps")
        if policy is not None and sampled is not None:
            local = engine_mismatch(policy, sampled, output["completion_mask"], output["exit_ids"], len(self.exits))
            for exit, values in enumerate(local.over(self.accelerator).metrics()):
                metrics.setdefault(self.exits[exit], {}).update(values)
        for name, values in metrics.items():
            for key, value in values.items():
                self._metrics[mode][f"{name}/{key}"].append(value)
        for key, value in self._rollout_times.items():
            self._metrics[mode][key].append(value)

    def _write_record(self, inputs, advantages) -> None:
        """Gives rank 0's `record` the rows of all ranks."""
        first = self.accelerator.process_index * len(inputs)
        rewards = self._rewards[first : first + len(inputs)].tolist()
        totals = self._composed.rewards[first : first + len(inputs)].tolist()
        rows = [
            {
                "step": self.state.global_step,
                "exit": request.exit,
                "prompt": row["prompt"],
                "prompt_ids": list(request.prompt_ids),
                "completion": self._tokenizer.decode(completion.token_ids, skip_special_tokens=True),
                "completion_ids": completion.token_ids,
                "finished": completion.finished,
                "log_probs": completion.log_probs,
                "rewards": {
                    name: None if math.isnan(score) else score for name, score in zip(self.reward_func_names, scores)
                },
                "reward": None if math.isnan(total) else total,
                "advantage": advantage,
            }
            for row, (request, completion), scores, total, advantage in zip(
                inputs, self._rolled_out, rewards, totals, advantages.tolist(), strict=True
            )
        ]
        rows = gather_object(rows)
        if self.accelerator.is_main_process:
            self._record(rows)
