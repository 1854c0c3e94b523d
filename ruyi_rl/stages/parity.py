"""Whether an exported folder computes what the family does: logits by transformers, log-probs by vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROWS, LENGTH = 4, 32
"""Rows and tokens a row that an export is checked on."""
FREE_SHARE = 0.8
"""Of a GPU's free memory, for an engine that checks an export."""


@dataclass(frozen=True)
class Parity:
    """How far an export was found from the family."""

    difference: float
    """Largest |logit of the folder's model - logit of the family's exit|, over the exits that it holds."""
    largest_logit: float
    allowed: float
    vllm: dict[str, Any] | None = None
    """`difference` and `allowed` of vLLM's log-probs, or the `problem` that kept it from being asked, or its `failure`
    to run the folder; None: it was not to be asked."""

    @property
    def failure(self) -> str | None:
        """Why the export must not be used, in one line; None where it may be."""
        measured = self.vllm or {}
        for name, difference, allowed in (
            ("logits", self.difference, self.allowed),
            ("vLLM's log-probs", measured.get("difference", 0.0), measured.get("allowed", 0.0)),
        ):
            if not difference <= allowed:  # nor where either is not a number
                return f"its {name} differ from the family's by up to {difference:.3g}, more than {allowed:.3g}"
        return measured.get("failure")


def check_rows(vocabulary: int, positions: int) -> torch.Tensor:
    """(ROWS, LENGTH or what fits with a token after it) token ids, drawn with a fixed seed."""
    return torch.randint(vocabulary, (ROWS, min(LENGTH, positions - 1)), generator=torch.Generator().manual_seed(0))


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """How far logits up to `largest` may differ: 1e-4 of it (and of 1), or eight times the dtype's rounding.

    The weights are equal but for merged ones, which are rounded once more.
    """
    return max(1e-4, 8 * torch.finfo(dtype).eps) * max(1.0, largest)


def compared(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Parity:
    """The logits (rows, length, vocabulary) of the same exits, compared; NaN where either holds one."""
    difference = max_of((got[name].float() - expected[name]).abs() for name in expected)
    largest = max_of(logits.abs() for logits in expected.values())
    return Parity(difference, largest, tolerance(dtype, largest))


def max_of(tensors: Iterable[torch.Tensor]) -> float:
    """The largest number in any of the tensors; NaN where one holds it."""
    return torch.stack([tensor.max() for tensor in tensors]).max().item()


def token_log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(rows, length, vocabulary), (rows, length) -> (rows, length - 1): log-prob of each token after the first."""
    return logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def unusable_vllm(config: PreTrainedConfig) -> str | None:
    """Why vLLM cannot be asked about models of this shape here, in one line; None if it can. Imports vLLM."""
    if problem := vllm_problem() or import_problem():
        return problem
    from ruyi_rl.rollout.engine_arguments import check_attention

    try:
        check_attention(config)
    except Refusal as refusal:
        return refusal.problem
    return None


def vllm_parity(
    folder: Path, rows: torch.Tensor, expected: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype
) -> dict[str, Any]:
    """What `Parity.vllm` holds of a folder.

    A log-prob is a logit less a mean of all, so it may be off by twice as much as a logit.

    Args:
        folder: a stock model.
        rows: (rows, length) token ids.
        expected: (rows, length, vocabulary) the family's logits.
        config: the folder's.
        dtype: of its weights.
    """
    if problem := unusable_vllm(config):
        return {"problem": problem}
    try:
        got = vllm_log_probs(folder, rows, config, dtype)
    except (Refusal, RuntimeError, ValueError) as error:  # whatever vLLM says of a model that it does not take
        said = " ".join(str(error).split()) or type(error).__name__
        return {"failure": f"vLLM could not run it: {said}; export.check=logits leaves vLLM out"}
    difference = (got - token_log_probs(expected, rows)).abs().max().item()
    return {"difference": difference, "allowed": 2 * tolerance(dtype, expected.abs().max().item())}


def vllm_log_probs(folder: Path, rows: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    """(rows, length - 1): log-prob of each token after the first, by an engine that loads the folder as it is."""
    from ruyi_rl.rollout.engine import Engine, leave_groups

    engine = Engine(folder.name, engine_arguments(folder, rows.shape[1] + 1, config, dtype))
    asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    try:
        outputs = engine.generate(rows.tolist(), [asked] * len(rows))
    finally:
        engine.shut_down()
        if not Engine.living:
            leave_groups()
    return torch.tensor(
        [
            [step[token].logprob for step, token in zip(output.prompt_logprobs[1:], row[1:], strict=True)]
            for output, row in zip(outputs, rows.tolist(), strict=True)
        ]
    )


def engine_arguments(folder: Path, length: int, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` for rows of `length` tokens and no more."""
    from ruyi_rl.rollout.engine_arguments import cpu_defaults
    from ruyi_rl.rollout.engine_memory import cache_shape

    arguments = {} if torch.cuda.is_available() else cpu_defaults(length)
    arguments |= {
        "model": str(folder),
        "skip_tokenizer_init": True,
        # By itself vLLM halves the precision of a float32 model.
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": length,
        "max_num_seqs": ROWS,
        "enforce_eager": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "kv_cache_memory_bytes": cache_shape(config, dtype.itemsize, 128).bytes_for(ROWS, length),
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        arguments["gpu_memory_utilization"] = FREE_SHARE * free / total
    return arguments
