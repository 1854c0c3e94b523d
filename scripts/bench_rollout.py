"""`bench.py rollout`: our back ends against a bare `vllm.LLM` on the exported branch."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench_timing import in_turn

EXITS = {"small": 1, "medium": 2, "large": 4}


@dataclass(frozen=True)
class Timing:
    """One contestant at one exit."""

    exit: str
    contestant: str
    median: float
    """Tokens per second."""
    lowest: float
    highest: float
    ratio: float
    """Median over rounds of this contestant's tokens per second over the baseline's in the same round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=24, help="each is asked for 8 samples")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--servers", action="store_true", help="a pool of servers too")


def timings(exit: str, measured: Mapping[str, tuple[list[float], list[float]]]) -> list[Timing]:
    return [
        Timing(exit, name, statistics.median(speeds), min(speeds), max(speeds), statistics.median(ratios))
        for name, (speeds, ratios) in measured.items()
    ]


def rollout(arguments: argparse.Namespace) -> dict[str, object]:
    """Our back ends against a bare `vllm.LLM` on the exported branch: same prompts, seeds, limits and log-probs."""
    import torch
    from transformers import Qwen3Config

    from ruyi_rl.family import Family
    from ruyi_rl.report.libraries import quiet_libraries
    from ruyi_rl.rollout.options import RolloutOptions
    from ruyi_rl.rollout.vllm import VllmRollout
    from ruyi_rl.rollout.worker import Request, Rollout, RolloutSpec, Sampling, request_seeds

    quiet_libraries()
    backbone = Qwen3Config(
        vocab_size=512,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.1,
    )
    family = Family.from_scratch(backbone, EXITS, seed=1)
    family.generation_config.eos_token_id = None
    sampling = Sampling(max_new_tokens=arguments.tokens)
    prompts = [[3 + n % 500, 5, 7 + n % 11, 9] for n in range(arguments.prompts) for _ in range(8)]
    found: list[Timing] = []
    with tempfile.TemporaryDirectory() as folder:
        spec = RolloutSpec(
            config=family.config,
            exits=tuple(EXITS),
            end_token_ids=(),
            pad_token_id=0,
            dtype=torch.float32,
            max_model_len=4 + arguments.tokens,
            folder=Path(folder) / "ours",
        )
        ours: dict[str, Rollout] = {"vllm": VllmRollout(RolloutOptions(backend="vllm"), spec)}
        if arguments.servers:
            from ruyi_rl.rollout.vllm_server import VllmServerRollout

            ours["vllm_server"] = VllmServerRollout(RolloutOptions(backend="vllm_server"), spec)
        for back_end in ours.values():
            back_end.update_weights(family)
        # All at once: the end of any engine of vLLM's own would end the process groups that all of them share.
        engines = {exit: bare_engine(family, exit, Path(folder) / "bare" / exit, spec.max_model_len) for exit in EXITS}
        for exit, bare in engines.items():
            seeds = request_seeds(1, (), [exit] * len(prompts), prompts)
            requests = [Request(exit, prompt, seed) for prompt, seed in zip(prompts, seeds)]
            expected = bare(requests, sampling)
            for name, back_end in ours.items():
                same = [drawn == ids for drawn, ids in zip(ids_of(back_end)(requests, sampling), expected)]
                print(f"{exit}: {name} draws {sum(same)} of {len(same)} completions as bare vLLM does", flush=True)
            contestants = {"bare vLLM": partial(tokens_of, bare, requests, sampling)}
            contestants |= {
                name: partial(tokens_of, ids_of(back_end), requests, sampling) for name, back_end in ours.items()
            }
            found += timings(exit, in_turn(contestants, arguments.rounds, "bare vLLM"))
        syncs = {}
        for name, back_end in ours.items():
            back_end.statistics()
            seconds = []
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                back_end.update_weights(family)
                seconds.append(time.perf_counter() - start)
            syncs[name] = statistics.median(seconds)
            back_end.close()
    show(found)
    for name, seconds in syncs.items():
        print(f"{name}: a sync of all exits takes {seconds:.3f} s (median of {arguments.rounds})")
    return {"timings": [asdict(timing) for timing in found], "sync_seconds": syncs}


def bare_llm(family, exit: str, folder: Path, max_model_len: int):
    """A plain `vllm.LLM` that loaded the exported branch from its folder."""
    from vllm import LLM

    family.branch(exit).save_pretrained(folder)
    return LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=max_model_len,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


def bare_engine(family, exit: str, folder: Path, max_model_len: int) -> Callable:
    """(requests, sampling) -> token ids, by a bare engine."""
    import torch
    from vllm import SamplingParams

    engine = bare_llm(family, exit, folder, max_model_len)

    def generate(requests, sampling) -> list[list[int]]:
        parameters = [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=request.seed,
                logprobs=0,
                detokenize=False,
                ignore_eos=True,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        with torch.compiler.set_stance("force_eager"):
            outputs = engine.generate(prompts, parameters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


def ids_of(back_end) -> Callable:
    """(requests, sampling) -> token ids, by one of our back ends."""
    return lambda requests, sampling: [completion.token_ids for completion in back_end.generate(requests, sampling)]


def tokens_of(generate: Callable, requests: Sequence, sampling) -> int:
    return sum(map(len, generate(requests, sampling)))


def show(found: Sequence[Timing]) -> None:
    print(f"{'exit':8} {'contestant':12} {'tokens/s':>10} {'min - max':>19} {'ratio':>7}")
    for timing in found:
        spread = f"{timing.lowest:.0f} - {timing.highest:.0f}"
        print(f"{timing.exit:8} {timing.contestant:12} {timing.median:10.0f} {spread:>19} {timing.ratio:7.3f}")
