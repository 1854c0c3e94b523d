"""Completions of a list of prompts: a few as they come, many in batches by the rollout back end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console

from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.report.streams import print_note, show_streams, write
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.selection import make_rollout
from ruyi_rl.rollout.worker import Completion, Request, Rollout, RolloutFailed, RolloutSpec, Sampling
from ruyi_rl.stages.answer_rows import Record, answer_row
from ruyi_rl.stages.prompts import Prompt
from ruyi_rl.stages.rollouts import model_length
from ruyi_rl.stages.speaker import Speaker
from ruyi_rl.stages.token_stream import TokenStream, advance

HEAD = 80
"""Characters of a prompt that stand above its completions."""


def answer(
    speaker: Speaker, asked: Sequence[tuple[Prompt, list[int]]], out: Console, notes: Console, record: Record | None
) -> None:
    """Completes prompt after prompt, the exits side by side, one sample at a time; shows the text as it comes.

    Args:
        asked: prompts with their tokens.
        record: takes the rows, in the order of prompts, exits and samples.
    """
    for prompt, ids in asked:
        requests = speaker.requests(ids, speaker.exits)
        rounds = []
        for sample in range(speaker.samples):
            if len(asked) > 1 or speaker.samples > 1:
                write(out, heading(prompt, f"sample {sample + 1}" if speaker.samples > 1 else ""))
            rounds.append({request.exit: speaker.stream(request) for request in requests[sample :: speaker.samples]})
            show(rounds[-1], out, notes)
        for exit in speaker.exits if record else ():
            for sample, streams in enumerate(rounds):
                record(answer_row(prompt.content, exit, sample, streams[exit].completion, streams[exit].text))


def show(streams: Mapping[str, TokenStream], out: Console, notes: Console) -> None:
    """Completes the streams (exit -> its own), all at the same time, and shows their text.

    An interrupt is raised when what had come is shown; the streams hold it.
    """
    with show_streams(list(streams), out, notes) as shown:
        for exit, piece in advance(streams):
            shown.add(exit, piece)
            if streams[exit].done:
                shown.end(exit, pace(len(streams[exit].token_ids), streams[exit].seconds, streams[exit].finished))


def answer_in_batches(
    speaker: Speaker,
    asked: Sequence[tuple[Prompt, list[int]]],
    options: RolloutOptions,
    out: Console,
    notes: Console,
    record: Record | None,
) -> None:
    """Completes many prompts by the rollout back end, with a progress line.

    Args:
        asked: prompts with their tokens.
        record: takes the rows, in the order of prompts, exits and samples; None: the completions are shown instead.

    Raises:
        Refusal: a back end that cannot run here.
        RolloutFailed: the back end gave up.
    """
    requests = [request for _, ids in asked for request in speaker.requests(ids, speaker.exits)]
    each = len(speaker.exits) * speaker.samples
    # Whole prompts, and enough of them to fill a batch of every exit.
    chunk = each * max(1, options.batch_size // speaker.samples)
    with (
        back_end(speaker, options, max(len(ids) for _, ids in asked), notes) as rollout,
        ProgressLine(notes, "completions", len(requests)) as line,
    ):
        done = 0
        for part in complete(rollout, requests, speaker.sampling, chunk):
            for number, (request, completion) in enumerate(part, done):
                (prompt, _), sample = asked[number // each], number % speaker.samples
                text = speaker.decode(completion.token_ids)
                if record is not None:
                    record(answer_row(prompt.content, request.exit, sample, completion, text))
                else:
                    head = heading(prompt) if number % each == 0 else ""
                    label = f"{request.exit}, sample {sample + 1}" if speaker.samples > 1 else request.exit
                    write(out, f"{head}[{label}]\n{text}\n\n")
            done += len(part)
            line.update(done)
        statistics = rollout.statistics()
        for exit in [name for name in speaker.exits if name in statistics]:
            print_note(notes, exit, pace(statistics[exit].tokens, statistics[exit].seconds))


def complete(
    rollout: Rollout, requests: Sequence[Request], sampling: Sampling, chunk: int
) -> Iterator[list[tuple[Request, Completion]]]:
    """Each request with its completion, in order, chunk by chunk.

    Args:
        rollout: has its weights.
        chunk: requests that are asked for at once.

    Raises:
        RolloutFailed: the back end gave up.
    """
    for start in range(0, len(requests), chunk):
        part = requests[start : start + chunk]
        yield list(zip(part, rollout.generate(part, sampling), strict=True))


@contextmanager
def back_end(speaker: Speaker, options: RolloutOptions, longest_prompt: int, notes: Console) -> Iterator[Rollout]:
    """The rollout back end with the family's weights. What it logs outlives it only where it gave up.

    Args:
        longest_prompt: in tokens.

    Raises:
        Refusal: it cannot run here, or its limit is too short.
    """
    config = speaker.family.config
    length = model_length(
        options.max_model_len, config.max_position_embeddings, longest_prompt, speaker.sampling.max_new_tokens
    )
    folder = Path(tempfile.mkdtemp(prefix="ruyi_rl-generate-"))
    spec = RolloutSpec(
        config=config,
        exits=tuple(speaker.exits),
        end_token_ids=tuple(speaker.ends),
        pad_token_id=speaker.tokenizer.pad_token_id,
        dtype=config.dtype or torch.float32,
        max_model_len=length,
        folder=folder,
        seed=speaker.seed,
    )
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder)
        rollout = make_rollout(options, spec, lambda line: notes.print(line, style="dim", markup=False, soft_wrap=True))
        held.callback(rollout.close)
        try:
            rollout.update_weights(speaker.family)
            yield rollout
        except RolloutFailed:
            held.pop_all()
            rollout.close()
            raise


def heading(prompt: Prompt, note: str = "") -> str:
    """The line above a prompt's completions."""
    text = prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]
    text = " ".join(text.split())
    shown = text if len(text) <= HEAD else text[: HEAD - 1] + "…"
    return f"> {shown}" + (f" ({note})" if note else "") + "\n"


def pace(tokens: int, seconds: float, finished: bool = True) -> str:
    """`12 tokens, 340 tokens/s`, and whether the limit ended a completion."""
    limit = "" if finished else " (the limit)"
    return f"{tokens} tokens{limit}, {tokens / max(seconds, 1e-9):.0f} tokens/s"
