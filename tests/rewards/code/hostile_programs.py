"""Hostile programs, from the files of the folder `hostile`. No program may pass the row that it is tried on.

- `leaks` pass if they find the secret, which only the tests, a file, the environment and three sockets know.
- `breaches` pass if `f(2)` returns "breach", which each does where it could do what it should not.
- `forgeries` and `burdens` are tried on the secret as well, so that only a forged verdict would pass.
- `disturbers` answer right (they are tried on squares), and spoil what they can for those that come after.

A program follows a line `#### name`, in `burdens` with the reasons that a verdict may have: `#### name -> reasons`.
Words with an @ are replaced: @FOLDER and @FILE (with the secret in it), @PORT, @ABSTRACT, @PID (of the process that
judges), @TOKEN (a name that leftovers carry).
"""

import re
from pathlib import Path

OPEN = ("read a file", "read a file by a link", "TCP", "abstract socket", "socket in a folder")
"""Leaks that work on any machine where nothing confines them."""
KINDS = ("leaks", "breaches", "forgeries", "burdens", "disturbers")

_SOURCES = {
    "deep source -> syntax exception": "x = " + "(" * 5000 + ")" * 5000,
    "deep source without brackets -> syntax exception memory crash timeout": "x = " + "-" * 200_000 + "1",
    "long source -> failed memory timeout": "x = [" + "1, " * 300_000 + "]\ndef f(x): return 0",
    "NUL in the source -> syntax exception": "def f(x): return 0\0",
}


def read_programs(kind: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> the program and the reasons that its verdict may have ([]: any but `passed`)."""
    text = (Path(__file__).parent / "hostile" / f"{kind}.txt").read_text()
    _, *parts = re.split(r"^#### (.+)\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True)) | (_SOURCES if kind == "burdens" else {})
    titles = {title: title.partition(" -> ") for title in found}
    return {titles[title][0]: (program.strip("\n"), titles[title][2].split()) for title, program in found.items()}
