"""One generation batch on its way to its rewards: groups are scored while others are still generated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from transformers import TrainerState

from ruyi_rl.rewards.failures import Share, share_of
from ruyi_rl.rewards.scored import Scored
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import Completion

Decode = Callable[[Sequence[list[int]]], list[Any]]


class ScoredBatch:
    """This rank's rows of a generation batch.

    Args:
        scorer: scores them.
        rows: of the data, one a completion: `prompt`, `exit` and whatever the functions read.
        samples: G; rows of a (prompt, exit) group stand together.
        state: of the trainer; functions get a copy, as it is now.
        decode: token ids -> completions as the functions get them.
    """

    def __init__(
        self, scorer: RewardScorer, rows: Sequence[Mapping[str, Any]], samples: int, state: TrainerState, decode: Decode
    ):
        self._rows, self._samples, self._decode = rows, samples, decode
        keys = [key for key in rows[0] if key not in ("prompt", "completion", "completion_ids")]
        columns = {key: [row[key] for row in rows] for key in keys}
        columns["prompts"] = [row["prompt"] for row in rows]
        self._scoring = scorer.begin(
            columns, {"trainer_state": picklable_state(state)}, [row // samples for row in range(len(rows))]
        )
        self._waiting: dict[int, Completion] = {}
        self._arrived: Counter[int] = Counter()
        self.rollouts_ended = time.monotonic()
        """When there was nothing more to wait for but rewards."""

    def arrived(self, places: Sequence[int], completions: Sequence[Completion]) -> None:
        """Takes completions and hands on the groups that are whole."""
        self._waiting.update(zip(places, completions, strict=True))
        self._arrived.update(place // self._samples for place in places)
        whole = [place for place in sorted(self._waiting) if self._arrived[place // self._samples] == self._samples]
        if whole:
            ids = [list(self._waiting.pop(place).token_ids) for place in whole]
            self._scoring.add(whole, self._decode(ids), completion_ids=ids)

    def cancel(self) -> None:
        """Gives up what is under way."""
        self._scoring.cancel()

    def collect(self, completions: Sequence[Any], token_ids: Sequence[list[int]]) -> tuple[Scored | None, Share]:
        """Waits for the rewards; never raises, so that no rank leaves the others waiting.

        Args:
            completions, token_ids: (rows,) as TRL has them; those that did not arrive before are scored now.

        Returns:
            The rewards, or None where there are none, and what the other ranks must know.
        """
        try:
            missing = self._scoring.missing
            self._scoring.add(
                missing, [completions[row] for row in missing], completion_ids=[token_ids[row] for row in missing]
            )
            if other := self._scoring.differing(completions):
                raise AssertionError(f"row {other[0]} was scored with a completion that is not its own")
            scored = self._scoring.result()
        except Exception as error:  # noqa: BLE001  whatever it is, all ranks must end together
            self.cancel()
            return None, Share({}, problem=f"{type(error).__name__}: {error}")
        exits = [row["exit"] for row in self._rows]
        return scored, share_of(scored, exits, [row["prompt"] for row in self._rows], completions)

    @property
    def overlapped(self) -> float:
        """Seconds of scoring that passed while rollouts were still generated."""
        return self._scoring.overlapped(self.rollouts_ended)


def picklable_state(state: TrainerState) -> SimpleNamespace:
    """A copy with the state's fields, without the log and what callbacks keep there.

    No TrainerState: a worker that unpickled one would import transformers and torch.
    """
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return SimpleNamespace(**values | {"log_history": [], "stateful_callbacks": {}, "trial_params": None})
