"""`stage=generate`: a finished family answers a prompt, a file of them, standard input, or in a chat."""

from __future__ import annotations

import sys
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.report.streams import note_console
from ruyi_rl.stages.answer_rows import recording
from ruyi_rl.stages.options import GenerateOptions
from ruyi_rl.stages.prompts import Prompt, line_prompts, read_prompts
from ruyi_rl.tools import find_family

STREAMED = 8
"""Most rounds (prompts times samples) that are shown as they come; more are completed in batches."""


def run(config: RunConfig) -> None:
    """Shows completions on standard output, and everything else on standard error.

    Raises:
        Refusal: no prompt, or one that the family cannot take.
    """
    options, folder = config.generate, find_family(config)
    chat = options.prompt is None and options.file is None and sys.stdin.isatty()
    prompts = [] if chat else asked_prompts(options)
    out, notes = run_console(), note_console()
    with notes.status("loading the libraries"):
        quiet_libraries()

        from ruyi_rl.stages.answers import answer, answer_in_batches
        from ruyi_rl.stages.chat import Chat
        from ruyi_rl.stages.speaker import Speaker

    with notes.status(f"reading {folder}"):
        speaker = Speaker(folder, config)
    drawn = f"temperature {options.temperature:g}" if options.temperature else "greedy"
    notes.print(f"{folder}: {', '.join(speaker.exits)}, {drawn}", style="dim", markup=False, soft_wrap=True)
    asked = [(prompt, speaker.prompt_ids(prompt)) for prompt in prompts]
    with recording(options.output) as record:
        if chat:
            Chat(speaker, out, notes, record).run()
        elif len(asked) * options.samples <= STREAMED:
            answer(speaker, asked, out, notes, record)
        else:
            answer_in_batches(speaker, asked, config.rollout, out, notes, record)
    if options.output is not None and not chat:
        count = len(asked) * options.samples * len(speaker.exits)
        notes.print(f"{count} completions in {options.output}", markup=False, soft_wrap=True)


def asked_prompts(options: GenerateOptions) -> list[Prompt]:
    """The prompts that the options name, else the lines of standard input.

    Raises:
        Refusal: none, or a bad file.
    """
    if options.prompt is not None:
        return [Prompt(options.prompt)]
    if options.file is not None:
        return read_prompts(Path(options.file))
    prompts = line_prompts(sys.stdin, "generate.prompt", "standard input")
    if not prompts:
        raise Refusal(
            "generate.prompt", "is not given, and standard input holds no line", "generate.prompt or generate.file"
        )
    return prompts
