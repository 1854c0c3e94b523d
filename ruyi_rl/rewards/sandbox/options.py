"""The options of a sandbox, and the refusal of impossible ones."""

from dataclasses import dataclass

from ruyi_rl.refusal import Refusal, nearest

MODES = ("bubblewrap", "none")


@dataclass(frozen=True)
class SandboxOptions:
    """What one program may have.

    Raises:
        Refusal: an unknown mode, or a limit that no program could run in.
    """

    mode: str = "bubblewrap"
    """`bubblewrap`; `none` runs programs unconfined but for time and memory, and must be asked for by name."""
    seconds: float = 10.0
    """Wall clock of one program, all its calls together."""
    memory_mb: int = 512
    """Memory of all its processes together where a memory cgroup can be had, else of each; and watched."""
    disk_mb: int = 64
    """Size of its only writable folder, which is in memory."""
    processes: int = 32
    """Processes and threads at once."""
    output_kb: int = 1024
    """Standard output, standard error, and one answer, each."""
    warm: bool = True
    """Fork programs from a warm interpreter instead of starting one for each."""

    def __post_init__(self):
        if self.mode not in MODES:
            raise Refusal("sandbox.mode", f"{self.mode!r} is unknown", nearest(str(self.mode), MODES))
        if not 0 < self.seconds <= 3600:
            raise Refusal("sandbox.seconds", f"{self.seconds} is not a time limit", "above 0, at most 3600")
        for name, least, most in (
            ("memory_mb", 64, 1 << 20),
            ("disk_mb", 1, 1 << 16),
            ("processes", 1, 4096),
            ("output_kb", 1, 1 << 18),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise Refusal(f"sandbox.{name}", f"{value!r} is out of range", f"a whole number, {least} to {most}")
