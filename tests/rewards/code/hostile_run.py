"""Runs the hostile programs in a process of its own, under whatever user started it, and prints what it found as JSON.

Arguments: the sandbox's mode, `warm` or `cold`, a folder. In mode `none` only `OPEN`, to see that they would work.
"""

import json
import os
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import psutil
from hostile_programs import KINDS, OPEN, read_programs

from ruyi_rl.rewards.code import CodeJudge, CodeOptions

SLOTS, SECONDS = 4, 0.7
SQUARES = {"asserts": ["assert f(2) == 4", "assert f(3) == 9"]}
HONEST = "import json, math, random\ndef f(x): return sorted(json.loads(json.dumps([x * x])))[0] * int(math.sqrt(1))"


class Target:
    """What a program may not get at: a secret in a file, in the environment and behind three sockets."""

    def __init__(self, folder: Path):
        self.folder, self.secret = folder, random.SystemRandom().randrange(10**9, 10**10)
        self.token = f"hostile-{os.getpid()}-{self.secret % 10**6}"
        self.file = folder / f"{self.token}.txt"
        self.file.write_text(str(self.secret))
        os.environ["HOSTILE_SECRET"] = str(self.secret)
        tcp = socket.create_server(("127.0.0.1", 0))
        self.port = tcp.getsockname()[1]
        abstract, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{self.token}")
        named.bind(str(folder / "socket"))
        for server in (tcp, abstract, named):
            server.listen()
            threading.Thread(target=self._tell, args=(server,), daemon=True).start()

    def _tell(self, server: socket.socket) -> None:
        while True:
            client, _ = server.accept()
            client.sendall(str(self.secret).encode())
            client.close()

    def aim(self, program: str) -> str:
        words = {"FOLDER": self.folder, "FILE": self.file, "PORT": self.port, "ABSTRACT": self.token,
                 "PID": os.getpid(), "TOKEN": self.token}  # fmt: skip
        for word, value in words.items():
            program = program.replace("@" + word, str(value))
        return program

    def leftovers(self) -> list[str]:
        """Files, sockets, mounts and processes that were not there before."""
        folders = (
            "/tmp",
            "/dev/shm",
            "/var/tmp",
            "/etc",
            "/root",
            "/home",
            "/run",
            "/opt",
            "/work",
            os.getcwd(),
            self.folder,
        )
        found = []
        for folder in map(Path, folders):
            if os.access(folder, os.R_OK) and folder.is_dir():
                found += [str(path) for path in folder.iterdir() if self.token in path.name and path != self.file]
        found += [f"process {child.pid} {child.name()}" for child in psutil.Process().children(recursive=True)]
        shared = Path("/proc/sysvipc/shm").read_text()
        return found + (["System V shared memory"] if str(0x5EC2E7) in shared else [])


def main(mode: str, warm: bool, folder: Path) -> dict:
    target = Target(folder)
    secret = {"asserts": [f"assert f(2) == {target.secret}", f"assert f(3) == {target.secret}"]}
    # Loops that Python itself ends at an exception.
    mapped = {"asserts": [f"assert all(map(lambda x: f(x) == {target.secret}, (2, 3)))"]}
    breach = {"asserts": ["assert f(2) == 'breach'"]}
    rows = {kind: [secret] for kind in KINDS} | {
        "forgeries": [secret, mapped],
        "breaches": [breach],
        "disturbers": [SQUARES],
    }
    tries = [
        (kind, name, program, reasons, row)
        for kind in KINDS
        for row in rows[kind]
        for name, (program, reasons) in read_programs(kind).items()
        if mode != "none" or name in OPEN
    ]
    options = CodeOptions(seconds=SECONDS if mode != "none" else 10 * SECONDS, sandbox=mode, warm=warm, memory_mb=256)
    before = _state()
    with ThreadPoolExecutor(SLOTS) as pool:
        judges: SimpleQueue[CodeJudge] = SimpleQueue()
        for _ in range(SLOTS):
            judges.put(CodeJudge(options).__enter__())

        def attempt(kind: str, name: str, program: str, reasons: list[str], row: dict) -> dict:
            judge = judges.get()
            start = time.monotonic()
            try:
                verdict = judge.judge(f"```python\n{target.aim(program)}\n```", row)
                reason, message = verdict.reason, verdict.message
            except Exception as error:  # noqa: BLE001  whatever breaks is a finding
                reason, message = "broken", f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - start
            after = judge.judge(HONEST, SQUARES)
            judges.put(judge)
            found = {"kind": kind, "name": name, "reason": reason, "message": message, "allowed": reasons}
            return found | {"seconds": seconds, "next": after.reason}

        results = list(pool.map(lambda each: attempt(*each), tries))
        for _ in range(SLOTS):
            judges.get().__exit__(None, None, None)
    changed = [name for name, value in _state().items() if value != before[name]]
    return {"results": results, "leftovers": target.leftovers(), "changed": changed, "kept": target.file.exists()}


def _state() -> dict:
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] == "warm", Path(sys.argv[3]))))
