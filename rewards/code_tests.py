r"""How many of its row's tests a program passes.

Formula: with p of n > 0 tests passed, r = 1 if p = n, else 0 (`credit="all"`); r = p / n (`credit="share"`); r = 1 if
p / n >= threshold, else 0 (`credit="threshold"`). None where the row has no usable tests. Source of "all": functional
correctness as in HumanEval (https://arxiv.org/abs/2107.03374, section 2.1); of "share": the code reward of open-r1
(https://github.com/huggingface/open-r1).

The program is the last ```python block outside the thinking, or the whole text. It runs confined by bubblewrap and only
ever answers; the tests run outside. `tests` is, as an object or as JSON text, one of

    {"asserts": ["assert f(2) == 4", …], "setup": "import math"}
    {"test": "def check(candidate): …", "entry_point": "f", "prompt": "def f(x): …"}     HumanEval
    {"test_list": ["assert f(2) == 4", …], "test_setup_code": "import math"}             MBPP
    {"inputs": ["2\n", …], "outputs": ["4\n", …]}                                        standard input and output
    {"entry_point": "f", "calls": [{"args": [2], "output": 4}, …]}

or HumanEval's `test` or MBPP's `test_list` alone, with the rest in columns of its own. Details: `ruyi_rl.rewards.code`.

What the program returns reaches the tests as plain data: a Counter as a dict, a named tuple as a tuple, a generator as
an iterator; `isinstance` of another class is not met. What it does to an argument, the tests see as they would in one
process, but only after an assertion in which it also returns something: so `x.clear(); return []` does not pass
`assert f(x) == sorted(x)`. It does pass `y = f(x)` and then `assert y == sorted(x)`: such tests must give a copy, as
HumanEval's do. A test passes if all its assertions outside of branches are reached, and no exception of the program is
swallowed but by the test's own `except`, `with` or `assertRaises`.
"""

import atexit
import functools

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards import code
from ruyi_rl.rewards.completions import completion_text
from ruyi_rl.rewards.sandbox import unconfinable


def code_tests(
    completions, tests, entry_point=None, code_prompt=None, test_setup_code=None, test_imports=None, credit="all",
    threshold=0.5, seconds=5.0, memory_mb=512, sandbox="bubblewrap", warm=True, language="python", log_extra=None,
    **kwargs,
) -> list[float | None]:  # fmt: skip
    """One reward a completion, in [0, 1].

    Args:
        tests: a row's tests, one a completion; None: no opinion.
        entry_point, code_prompt, test_setup_code, test_imports: columns that complete `tests`, see above.
        credit, threshold, seconds, memory_mb, sandbox, warm, language: see `ruyi_rl.rewards.code.CodeOptions`.
    """
    judge = _judge(code.CodeOptions(credit, threshold, seconds, memory_mb, sandbox, warm, language))
    columns = {
        "entry_point": entry_point,
        "prompt": code_prompt,
        "setup": test_setup_code,
        "test_imports": test_imports,
    }
    known, verdicts = {}, []
    for number, (completion, row) in enumerate(zip(completions, tests, strict=True)):
        beside = {name: column[number] for name, column in columns.items() if column is not None}
        text = completion_text(completion)
        # Completions of a group repeat each other: equal ones have one verdict.
        # Not by their JSON: that knows no tuple as a key, and writes the keys 1 and "1" alike.
        key = text, repr((row, beside))
        if key not in known:
            known[key] = judge.judge(text, row, **beside)
        verdicts.append(known[key])
    if log_extra is not None:
        for field in ("reason", "passed", "total"):
            log_extra(f"code_tests/{field}", [getattr(verdict, field) for verdict in verdicts])
    return [code.credit(verdict, credit, threshold) for verdict in verdicts]


def _start(timeout=None, **kwargs) -> None:
    """Refuses impossible options, and to run where programs cannot be confined."""
    options = code.CodeOptions(**kwargs)
    if timeout is not None and timeout < options.seconds + 1:
        # Else a program that hangs would end the worker, and be left out in place of a 0.
        problem = f"{timeout:g} seconds a sample are too few for programs that may take {options.seconds:g}"
        raise Refusal("reward.functions.code_tests.timeout", problem, f"at least {options.seconds + 1:g}")
    if why := unconfinable(options.sandbox_options()):
        allowed = "sandbox=none runs strangers' programs as yourself, with nothing between them and your files"
        raise Refusal("reward.functions.code_tests.kwargs.sandbox", why, allowed)


@functools.cache
def _judge(options: code.CodeOptions) -> code.CodeJudge:
    # Kept from call to call for its warm interpreters.
    judge = code.CodeJudge(options).__enter__()
    atexit.register(judge.__exit__)
    return judge
