"""`bench.py sync`: new weights for all exits' engines, ours beside one plain engine a branch that takes all of it.

Separate models send their whole branches: from memory into engines of the same process, or through weight files, as
servers take them. Here one family does; the engines in this process share its trunk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench_baseline import add_baseline_arguments, against_baseline
from bench_family import EXITS, family_of, shape_of
from bench_rollout import bare_llm
from bench_timing import Spread, phases_in_turn

MEMORY, FILES = "plain, from memory", "plain, through files"
TOKENS = 4
TOLERANCE = 1e-4


@dataclass(frozen=True)
class SyncRow:
    """One back end."""

    contestant: str
    baseline: str
    """What it is compared with."""
    seconds: Spread
    ratio: Spread
    """The baseline's seconds over these, in the same round."""
    mib_per_second: float
    """Of all exits' branches."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(EXITS), default="ruyi2")
    parser.add_argument("--hidden", type=int, help="width; default: the shape's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--servers", action="store_true", help="a pool of servers too")
    add_baseline_arguments(parser)


def sync(arguments: argparse.Namespace) -> dict[str, object]:
    """Prove that every engine has the weights, time, and print."""
    import torch

    from ruyi_rl.report.libraries import quiet_libraries
    from ruyi_rl.rollout.options import RolloutOptions
    from ruyi_rl.rollout.vllm import VllmRollout
    from ruyi_rl.rollout.worker import RolloutSpec

    if min(arguments.rounds, arguments.threads) < 1:
        raise SystemExit("--rounds and --threads are whole numbers, at least 1")
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    shape = shape_of(arguments.shape, arguments.hidden)
    family = family_of(shape)
    family.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        spec = RolloutSpec(family.config, tuple(shape.exits), (), 0, torch.float32, 64, folder / "ours")
        back_ends = {"vllm": VllmRollout(RolloutOptions(backend="vllm"), spec)}
        if arguments.servers:
            from ruyi_rl.rollout.vllm_server import VllmServerRollout

            back_ends["vllm_server"] = VllmServerRollout(RolloutOptions(backend="vllm_server"), spec)
        for back_end in back_ends.values():
            stack.callback(back_end.close)
            back_end.update_weights(family)
        engines = {exit: bare_llm(family, exit, folder / "bare" / exit, 64) for exit in shape.exits}
        branches = {exit: family.branch(exit, copy=False) for exit in shape.exits}
        plain = {
            MEMORY: partial(from_memory, engines, branches),
            FILES: partial(through_files, engines, branches, folder / "sent"),
        }
        senders = {**plain, **{name: partial(b.update_weights, family) for name, b in back_ends.items()}}
        drawers = {name: partial(drawn_by_engines, engines) for name in plain}
        drawers |= {name: partial(drawn_by_back_end, b, list(branches)) for name, b in back_ends.items()}
        for contestant, send in senders.items():
            move(family)
            send()
            apart = difference(drawers[contestant](), branches)
            print(f"{contestant}: log-probs of what it draws within {apart:.1e} of the branches'", flush=True)
            if not apart <= TOLERANCE:
                sys.exit(f"{contestant}: the engines do not have the weights that were sent")
        seconds = phases_in_turn({name: partial(timed, send) for name, send in senders.items()}, arguments.rounds)
    mib = sum(p.numel() * 4 for branch in branches.values() for p in branch.parameters()) / 2**20
    rows = rows_of({name: found["sync"] for name, found in seconds.items()}, mib)
    show(rows)
    label = f"sync {arguments.shape} {shape.hidden}"
    against_baseline(
        arguments, {f"{label} | {row.contestant}": row.ratio.median for row in rows if row.contestant != row.baseline}
    )
    return {"rows": [asdict(row) for row in rows], "threads": arguments.threads}


def move(family) -> None:
    """Weights that no engine has yet."""
    import torch

    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def from_memory(engines: Mapping, branches: Mapping) -> None:
    """As TRL's colocated engine would take separate models' weights, all at once."""
    for exit, engine in engines.items():
        weights = iter(list(branches[exit].state_dict().items()))
        reload(engine, weights_iterator=weights)


def through_files(engines: Mapping, branches: Mapping, folder: Path) -> None:
    for exit, engine in engines.items():
        branches[exit].save_pretrained(folder / exit)
        reload(engine, weights_path=str(folder / exit))


def reload(engine, **source) -> None:
    import torch

    with torch.compiler.set_stance("force_eager"):
        engine.collective_rpc("reload_weights", kwargs=source)
    engine.reset_prefix_cache()


def timed(send: Callable[[], None]) -> dict[str, float]:
    start = time.perf_counter()
    send()
    return {"sync": time.perf_counter() - start}


def prompts() -> list[list[int]]:
    return [[3 + n, 5, 7 + n % 11, 9] for n in range(8)]


Drawn = dict[str, list[tuple[list[int], list[int], list[float]]]]
"""Exit -> (prompt, tokens, log-probs) of each completion."""


def drawn_by_engines(engines: Mapping) -> Drawn:
    import torch
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=TOKENS, seed=1, logprobs=0, detokenize=False, ignore_eos=True)
    found = {}
    for exit, engine in engines.items():
        with torch.compiler.set_stance("force_eager"):
            outputs = engine.generate([{"prompt_token_ids": p} for p in prompts()], parameters, use_tqdm=False)
        samples = [output.outputs[0] for output in outputs]
        found[exit] = [
            (prompt, list(sample.token_ids), [at[t].logprob for at, t in zip(sample.logprobs, sample.token_ids)])
            for prompt, sample in zip(prompts(), samples, strict=True)
        ]
    return found


def drawn_by_back_end(back_end, exits: Sequence[str]) -> Drawn:
    from ruyi_rl.rollout.worker import Request, Sampling

    found = {}
    for exit in exits:
        completions = back_end.generate([Request(exit, prompt, 1) for prompt in prompts()], Sampling(TOKENS))
        found[exit] = [(prompt, c.token_ids, c.log_probs) for prompt, c in zip(prompts(), completions, strict=True)]
    return found


def difference(drawn: Drawn, branches: Mapping) -> float:
    """Largest difference of a log-prob from the stock branch's."""
    import torch

    apart = 0.0
    for exit, completions in drawn.items():
        for prompt, tokens, log_probs in completions:
            with torch.no_grad():
                logits = branches[exit](torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            apart = max(apart, float((expected - torch.tensor(log_probs)).abs().max()))
    return apart


def rows_of(seconds: Mapping[str, Sequence[float]], mib: float) -> list[SyncRow]:
    """Servers beside files, engines of this process beside memory."""
    found = []
    for name, own in seconds.items():
        baseline = FILES if name in (FILES, "vllm_server") else MEMORY
        ratio = Spread.of([b / a for a, b in zip(own, seconds[baseline], strict=True)])
        found.append(SyncRow(name, baseline, Spread.of(own), ratio, mib / Spread.of(own).median))
    return found


def show(rows: Sequence[SyncRow]) -> None:
    print(f"{'sync of all exits':22} {'seconds':>23} {'ratio':>23} {'to':22} {'MiB/s':>8}")
    for row in rows:
        print(f"{row.contestant:22} {row.seconds!s:>23} {row.ratio!s:>23} {row.baseline:22} {row.mib_per_second:8.0f}")
    print("transformers: nothing is sent, the family itself generates")
