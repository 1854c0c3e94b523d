"""A slot: the place where one program at a time runs, with a user of its own, a memory cgroup and a starter."""

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

from ruyi_rl.rewards.sandbox.cgroups import create_memory_cgroup
from ruyi_rl.rewards.sandbox.languages import Language
from ruyi_rl.rewards.sandbox.options import SandboxOptions
from ruyi_rl.rewards.sandbox.payload import payload
from ruyi_rl.rewards.sandbox.residences import Residence, SandboxFailure
from ruyi_rl.rewards.sandbox.starters import ColdStarter, WarmStarter
from ruyi_rl.rewards.sandbox.users import claim_user

_OWN_BYTES = 48 << 20
"""What bubblewrap, the zygote and the residents hold in a memory cgroup themselves."""
_ATTEMPTS = 3


class Slot:
    """A place for programs of one language, one after the other. Not thread safe; `close` it.

    While a program runs, the resident of the next one is started in another thread: each serves one program only, but
    nobody waits for a start that the kernel delays. That thread lives in the memory cgroup where the system lets a
    thread do so (version 1), so that what it starts is born there; to move a process later takes the kernel long.
    """

    def __init__(self, options: SandboxOptions, language: Language):
        self.options, self.confined = options, options.mode != "none"
        with contextlib.ExitStack() as stack:
            lock, user = claim_user() if self.confined and os.geteuid() == 0 else (None, 0)
            if lock is not None:
                stack.callback(lock.close)
            memory = ((options.memory_mb + options.disk_mb) << 20) + _OWN_BYTES
            self.cgroup = create_memory_cgroup(memory) if self.confined else None
            if self.cgroup is not None:
                stack.callback(self.cgroup.remove)
            inside = payload(options, user)
            warm = options.warm and self.confined
            self._starter = WarmStarter(language, inside) if warm else ColdStarter(language, inside, self.confined)
            stack.callback(self._starter.close)
            self._thread = ThreadPoolExecutor(1, "sandbox", self._enter_cgroup)
            stack.callback(self._thread.shutdown)
            self._next: Future[Residence] | None = None
            stack.callback(self._end_next)
            self._kills = 0
            self._stack = stack.pop_all()

    def start(self) -> Residence:
        """A residence whose program has been started and waits for requests.

        Raises:
            SandboxFailure: none came up.
        """
        failure = None
        for _ in range(_ATTEMPTS):
            future, self._next = self._next or self._thread.submit(self._prepare), None
            try:
                residence = future.result()
            except SandboxFailure as error:
                failure = error
                continue
            self._kills = self.cgroup.kills() if self.cgroup is not None else 0
            if residence.let_go():
                self._next = self._thread.submit(self._prepare)
                return residence
            residence.end()
        raise failure or SandboxFailure(f"the sandbox dies before it runs a program: {self._starter.said()}")

    def killed_for_memory(self) -> bool:
        """Whether the kernel killed a process of the program that was started last for want of memory."""
        return self.cgroup is not None and self.cgroup.kills() > self._kills

    def close(self) -> None:
        """End what was started ahead, and give back the user and the cgroup."""
        self._stack.close()

    def _end_next(self) -> None:
        if self._next is not None:
            with contextlib.suppress(SandboxFailure):
                self._next.result().end()
            self._next = None

    def _enter_cgroup(self) -> None:
        if self.cgroup is not None:
            # Where it cannot, `adopt` moves each process that was started.
            with contextlib.suppress(OSError):
                self.cgroup.add_this_thread()

    def _prepare(self) -> Residence:
        residence = Residence.make()
        try:
            self._starter.start(residence)
            residence.greet()
            if self.cgroup is not None:
                self.cgroup.adopt(residence.number)
        except SandboxFailure as failure:
            residence.end()
            raise SandboxFailure(f"{failure}: {self._starter.said()}") from None
        except BaseException:
            residence.end()
            raise
        return residence
