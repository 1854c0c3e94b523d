"""Confines strangers' programs: inputs in, plain data out, comparison outside. Needs the standard library only.

with Sandbox(SandboxOptions(seconds=5)) as sandbox, sandbox.open("def double(x): return 2 * x") as program:
    program.call("double", [21])            # Outcome(kind="value", value=42, …)
"""

from ruyi_rl.rewards.sandbox.confined import Confined
from ruyi_rl.rewards.sandbox.options import SandboxOptions
from ruyi_rl.rewards.sandbox.outcome import Outcome
from ruyi_rl.rewards.sandbox.plain import TooLarge, Unplain
from ruyi_rl.rewards.sandbox.probe import unconfinable
from ruyi_rl.rewards.sandbox.residences import SandboxFailure
from ruyi_rl.rewards.sandbox.sandbox import Sandbox

__all__ = ["Confined", "Outcome", "Sandbox", "SandboxFailure", "SandboxOptions", "TooLarge", "Unplain", "unconfinable"]
