"""From a completion's code and the row's prompt to whole programs. The prompt is a program whose last function lacks
its body, as in HumanEval; a completion gives the whole function, or the body only."""

import ast
import re
import textwrap
from dataclasses import dataclass

from ruyi_rl.rewards.code.extraction import defines

_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]+(?:\([^)]*\)|[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Stub:
    """A prompt that is code."""

    source: str
    """The prompt, ending in a line break."""
    preamble: str
    """All of it but the function that is asked for: imports and helpers."""
    margin: str
    """The indentation of that function's body."""


def read_stub(prompt: str | None, function: str | None) -> Stub | None:
    """The prompt as code; None where it is prose, or does not define `function` at its top level."""
    if not prompt or not function:
        return None
    prompt = prompt.rstrip(" \t\r\n") + "\n"
    for source in (prompt, prompt + "    pass\n"):
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError):
            continue
        asked = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
        if asked:
            rest = [node for node in body if node is not asked[-1]]
            preamble = "".join(ast.unparse(node) + "\n" for node in rest)
            return Stub(prompt, preamble, " " * asked[-1].body[0].col_offset)
    return None


def whole_programs(code: str, stub: Stub | None, function: str | None) -> list[str]:
    """The programs that a completion's code may mean, the likeliest first; another is tried only where the one before
    does not compile.

    A whole function gets the prompt's imports and helpers in front, which its own definitions override. A body is put
    under the prompt, indented if it is not; what follows the function at the left margin may be cut off.
    """
    if stub is None:
        return [code]
    if defines(code, function):
        return [_with_preamble(stub.preamble, code)]
    body = _indented(code, stub.margin)
    return list(dict.fromkeys([stub.source + body, stub.source + _up_to_margin(body)]))


def _with_preamble(preamble: str, code: str) -> str:
    future = None
    for future in _FUTURE.finditer(code):
        pass
    head = code[: future.end()] + "\n" if future else ""
    return head + preamble + code[len(head) :]


def _indented(body: str, margin: str) -> str:
    """The body as it stands inside the function: moved as a whole, or only its first line where that alone lost its
    indentation."""
    first, _, rest = body.partition("\n")
    if first[:1] in (" ", "\t"):
        dedented = textwrap.dedent(body)
        # Where something follows at the left margin, there is no common indentation to take away.
        return body if dedented[:1] in (" ", "\t") else textwrap.indent(dedented, margin)
    depths = [len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()]
    # `while x:` with all the rest below it is one statement at the margin.
    one_statement = first.rstrip().endswith(":") and depths and depths[0] == min(depths) < 2 * len(margin)
    lost = depths and min(depths) >= len(margin) and not one_statement
    return margin + body if lost else textwrap.indent(body, margin)


def _up_to_margin(body: str) -> str:
    following = re.search(r"\n(?=[^\s)\]}#])", body)
    return body[: following.start()] if following else body
