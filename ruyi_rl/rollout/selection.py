"""Which rollout back end a run uses."""

from __future__ import annotations

from collections.abc import Callable

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.rollout.worker import Rollout, RolloutSpec

REMEDY = "rollout=transformers, or install vLLM: RUYI_VLLM=cpu|cuda make setup"


def make_rollout(
    options: RolloutOptions,
    spec: RolloutSpec,
    say: Callable[[str], None] = lambda line: None,
    beat: Callable[[], None] = lambda: None,
) -> Rollout:
    """The back end that the options name; `auto` takes vLLM's engines where they can be imported.

    Args:
        say: told in one line which back end generates, and why not another.
        beat: called whenever generation moves on, in whatever thread.

    Raises:
        Refusal: a back end that cannot run here, or whose engines do not fit.
    """
    if options.backend == "auto":
        problem = vllm_problem() or import_problem() or attention_problem(spec)
        backend = "transformers" if problem else "vllm"
        say(f"rollouts by {backend}, which auto took" + (f": {problem}" if problem else ""))
    else:
        backend = options.backend
        # Servers at given addresses need no vLLM here; the pool asks for what it starts.
        problem = (vllm_problem() or import_problem()) if backend == "vllm" else None
        if problem:
            raise Refusal("rollout", f"{backend} cannot be used: {problem}", REMEDY)
        say(f"rollouts by {backend}")
    if backend == "vllm":
        from ruyi_rl.rollout.vllm import VllmRollout

        return VllmRollout(options, spec, beat=beat)
    if backend == "vllm_server":
        from ruyi_rl.rollout.vllm_server import VllmServerRollout

        return VllmServerRollout(options, spec, report=say, beat=beat)
    from ruyi_rl.rollout.transformers import TransformersRollout

    return TransformersRollout(None, spec.pad_token_id, spec.end_token_ids, options.batch_size, beat)


def attention_problem(spec: RolloutSpec) -> str | None:
    """Why vLLM's build for CPUs cannot run the family, in one line; None if it can."""
    from ruyi_rl.rollout.engine_arguments import check_attention

    try:
        check_attention(spec.config)
    except Refusal as refusal:
        return refusal.problem
    return None
