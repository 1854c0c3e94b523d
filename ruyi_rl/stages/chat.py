"""A chat on the terminal: every exit keeps the history of its own answers."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.stages.answer_rows import Record, answer_row
from ruyi_rl.stages.answers import show
from ruyi_rl.stages.prompts import Messages, Prompt
from ruyi_rl.stages.speaker import Speaker

HELP = "/exit {exits} chooses who answers, /exit alone lets all; an empty line or Ctrl-D ends, Ctrl-C stops an answer"
FORGET = "/reset forgets what was said"


def read_line() -> str | None:
    """A line of the terminal; None where the user has done."""
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


class Chat:
    """Answers line after line.

    Args:
        speaker: completes.
        out: where answers go.
        notes: where everything else goes.
        record: takes the answers as rows.
    """

    def __init__(self, speaker: Speaker, out: Console, notes: Console, record: Record | None = None):
        self.speaker, self.out, self.notes, self.record = speaker, out, notes, record
        self.exits = list(speaker.exits)
        """Names of the exits that answer now."""
        self.histories: dict[str, Messages] = {exit: [] for exit in speaker.exits}
        """Exit -> the messages so far, without the system's; stays empty where prompts are plain text."""

    def run(self, read: Callable[[], str | None] = read_line) -> None:
        """Prints what can be typed, then answers until there is no further line."""
        how = f"chat; {FORGET}" if self.speaker.chat else "each line is a prompt of its own, as plain text"
        self._say(how)
        self._say(HELP.format(exits=",".join(self.speaker.exits)))
        while (line := read()) is not None:
            command, _, rest = line.partition(" ")
            if command == "/reset":
                self.histories = {exit: [] for exit in self.histories}
            elif command == "/exit":
                self._choose(rest)
            else:
                self._answer(line)

    def _choose(self, text: str) -> None:
        names = text.replace(",", " ").split()
        for name in names:
            if name not in self.speaker.exits:
                self._say(f"no exit {name!r} here: {nearest(name, self.speaker.exits)}")
                return
        self.exits = [exit for exit in self.speaker.exits if not names or exit in names]
        self._say(f"{', '.join(self.exits)} from now on")

    def _answer(self, line: str) -> None:
        said = {"role": "user", "content": line}
        prompts = {
            exit: Prompt([*self.histories[exit], said] if self.speaker.chat else line, "this line")
            for exit in self.exits
        }
        try:
            requests = [
                self.speaker.requests(self.speaker.prompt_ids(prompt), [exit])[0] for exit, prompt in prompts.items()
            ]
        except Refusal as refusal:
            self._say(f"{refusal}; {FORGET}")
            return
        streams = {request.exit: self.speaker.stream(request) for request in requests}
        try:
            show(streams, self.out, self.notes)
        except KeyboardInterrupt:
            self._say("stopped")
        for exit, made in streams.items():
            if self.speaker.chat:
                self.histories[exit] += [said, {"role": "assistant", "content": made.text}]
            if self.record is not None:
                self.record(answer_row(prompts[exit].content, exit, 0, made.completion, made.text))

    def _say(self, line: str) -> None:
        self.notes.print(line, style="dim", markup=False, soft_wrap=True)
