"""Programs in completions, judged by the tests of their rows.

The program runs in the sandbox and only ever answers: arguments go in, plain data or printed text comes out, and all
comparing is done outside. Assert statements run in a trusted process, where the program's functions are proxies.
"""

from ruyi_rl.rewards.code.judging import CodeJudge
from ruyi_rl.rewards.code.options import CodeOptions
from ruyi_rl.rewards.code.verdict import Verdict, credit

__all__ = ["CodeJudge", "CodeOptions", "Verdict", "credit"]
