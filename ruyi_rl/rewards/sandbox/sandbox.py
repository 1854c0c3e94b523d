"""Places where strangers' programs run, and how they are shared by threads."""

import threading
from dataclasses import dataclass, field
from typing import Self

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.sandbox.confined import Confined
from ruyi_rl.rewards.sandbox.languages import LANGUAGES, language
from ruyi_rl.rewards.sandbox.options import SandboxOptions
from ruyi_rl.rewards.sandbox.slots import Slot


@dataclass
class _Slots:
    """The slots of one language: those that nobody uses, and how many there are."""

    free: list[Slot] = field(default_factory=list)
    made: int = 0


class Sandbox:
    """Runs programs that nobody trusts. A context manager; thread safe.

    The program gets a function's arguments or standard input, and gives plain data or text; whoever judges it does so
    outside, so that it never sees what is expected of it. Slots are made when they are first needed.

    Args:
        options: the limits of one program.
        slots: programs of one language that may be open at once; `open` waits for a free slot.
    """

    def __init__(self, options: SandboxOptions | None = None, slots: int = 1):
        if slots < 1:
            raise Refusal("sandbox.slots", f"{slots} is no number of programs", "1 or more")
        self.options, self._most = options or SandboxOptions(), slots
        self._slots = {name: _Slots() for name in LANGUAGES}
        self._changed = threading.Condition()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, program: str, language: str = "python") -> Confined:
        """A program in a slot of its own, from a fresh state. Close it, so that the next one gets its slot.

        Raises:
            Refusal: a language that is not known.
            ValueError: the sandbox is closed.
        """
        slots, slot = self._of(language), None
        with self._changed:
            self._changed.wait_for(lambda: self._closed or slots.free or slots.made < self._most)
            if self._closed:
                raise ValueError("this sandbox is closed")
            if slots.free:
                slot = slots.free.pop()
            else:
                slots.made += 1
        if slot is None:
            try:
                slot = self._make(language)
            except BaseException:
                with self._changed:
                    slots.made -= 1
                    self._changed.notify()
                raise
        return Confined(program, slot, lambda: self._give_back(slots, slot))

    def close(self) -> None:
        """End everything. Programs that are still open end when they are closed."""
        with self._changed:
            self._closed = True
            free = [slot for slots in self._slots.values() for slot in slots.free]
            for slots in self._slots.values():
                slots.free.clear()
            self._changed.notify_all()
        for slot in free:
            slot.close()

    def _of(self, name: str) -> _Slots:
        language(name)
        return self._slots[name]

    def _make(self, name: str) -> Slot:
        return Slot(self.options, language(name))

    def _give_back(self, slots: _Slots, slot: Slot) -> None:
        with self._changed:
            closed = self._closed
            if not closed:
                slots.free.append(slot)
            self._changed.notify()
        if closed:
            slot.close()
