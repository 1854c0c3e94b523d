"""Programs that try to get out of a sandbox, or to bring it down, and what must come of each.

Also a script, for a user who cannot read this project's environment: it needs the standard library only and a folder
with the package, and prints the names of those that came out wrong, as JSON.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from ruyi_rl.rewards.sandbox import Outcome, Sandbox, SandboxOptions, unconfinable

LIMITS = SandboxOptions(seconds=1.5, memory_mb=128, disk_mb=4, processes=12, output_kb=64)
CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass(frozen=True)
class Escape:
    """A program with a function `f`, and whether its outcome is as it must be."""

    program: str
    right: Callable[[Outcome], bool]
    args: list = field(default_factory=list)


def is_kind(*kinds: str) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.kind in kinds


def is_value(value: object) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.kind == "value" and outcome.value == value


def refused(expression: str, before: str = "") -> Escape:
    """`expression` must raise an OSError."""
    program = f"import os, socket, signal\n{before}def f():\n    try:\n        {expression}\n    except OSError:\n"
    return Escape(program + "        return 'refused'\n", is_value("refused"))


def system_call(expression: str) -> Escape:
    """A function of the C library must return -1, with EPERM."""
    return Escape(f"{CALL}def f(): return libc.{expression}, ctypes.get_errno()", is_value((-1, 1)))


def escapes(secret: str, port: int) -> dict[str, Escape]:
    """Name -> escape.

    Args:
        secret: a file that the user who tests may read and write.
        port: one of this machine that listens.
    """
    loop = "while True: pass"
    return {
        "endless loop": Escape(f"def f():\n    {loop}", is_kind("timeout")),
        "endless definitions": Escape(loop, lambda outcome: outcome.kind == "timeout" and outcome.loading),
        "sleep": Escape("import time\ndef f(): time.sleep(99)", is_kind("timeout")),
        "signals ignored": Escape(
            "import signal\ndef f():\n    for n in range(1, 32):\n        try: signal.signal(n, signal.SIG_IGN)\n"
            f"        except OSError: pass\n    {loop}",
            is_kind("timeout"),
        ),
        "memory": Escape("def f(): return len(bytearray(10**10))", is_kind("memory")),
        "memory of children": Escape(
            "import os, time\ndef f():\n    for _ in range(6):\n        if os.fork() == 0:\n"
            "            block = b'x' * (80 << 20)\n            time.sleep(99)\n    time.sleep(99)",
            is_kind("memory"),
        ),
        "fork bomb": Escape(
            "import os, time\ndef f():\n    children = 0\n    try:\n        while children < 99:\n"
            "            if os.fork() == 0: time.sleep(99)\n            children += 1\n    except OSError: pass\n"
            "    return children",
            lambda outcome: outcome.kind == "value" and LIMITS.processes - 1 <= outcome.value <= LIMITS.processes + 1,
        ),
        "wild fork bomb": Escape(
            "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass",
            is_kind("timeout", "crash", "memory"),
        ),
        "thread bomb": Escape(
            "import threading, time\ndef f():\n    while True: threading.Thread(target=time.sleep, args=[99]).start()",
            is_kind("exception", "memory"),
        ),
        "daemon": Escape(
            "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
            "            time.sleep(99)\n        os._exit(0)\n    return 1",
            is_value(1),
        ),
        "kill everything": Escape(
            "import os, signal\ndef f():\n    for n in [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, "
            "signal.SIGSTOP]:\n"
            "        for target in [1, -1, os.getppid()]:\n            try: os.kill(target, n)\n"
            "            except (OSError, KeyboardInterrupt): pass\n    return 1",
            is_value(1),
        ),
        "kill the group": Escape("import os\ndef f(): os.killpg(0, 9)", is_kind("crash")),
        "stdout flood": Escape("def f():\n    while True: print('x' * 9999)", is_kind("flood")),
        "stderr flood": Escape("import os\ndef f():\n    while True: os.write(2, b'x' * 9999)", is_kind("flood")),
        "answer flood": Escape("def f(): return 'x' * 10**6", is_kind("flood")),
        "endless answer": Escape("def f():\n    a = []\n    a.append(a)\n    return a", is_kind("flood")),
        "answer of shared parts": Escape(
            "def f():\n    a = []\n    for _ in range(90): a = [a, a]\n    return a", is_kind("flood")
        ),
        "huge integer": Escape("def f(): return 1 << 10**7", is_kind("flood")),
        "colliding keys": Escape("def f(): return {k * (2**61 - 1): 0 for k in range(1, 3000)}", is_kind("unplain")),
        "channel flood": Escape(
            "import os\ndef f():\n    while True: os.write(3, b'x' * 9999)", is_kind("flood", "crash")
        ),
        "channel garbage": Escape("import os\ndef f(): os.write(3, b'\\3\\0\\0\\0xyz')", is_kind("crash")),
        "forged kind": Escape(
            "import os, sys\ndef f():\n    d = b't\\4\\0\\0\\0' + b's\\7\\0\\0\\0timeout' + "
            "b'N\\0\\0\\0\\0s\\0\\0\\0\\0N\\0\\0\\0\\0'"
            "\n    os.write(3, len(d).to_bytes(4, 'little') + d)\n    os._exit(0)",
            is_kind("crash"),
        ),
        "forged exception": Escape(
            "import os\ndef f():\n    d = b't\\4\\0\\0\\0' + b's\\x09\\0\\0\\0exception'"
            " + b'N\\0\\0\\0\\0s\\0\\0\\0\\0N\\0\\0\\0\\0'"
            "\n    os.write(3, len(d).to_bytes(4, 'little') + d)\n    os._exit(0)",
            is_kind("crash"),
        ),
        "closed descriptors": Escape("import os\ndef f():\n    os.closerange(0, 99)\n    return 1", is_kind("crash")),
        "exit": Escape("import os\ndef f(): os._exit(0)", is_kind("crash")),
        "SystemExit": Escape("def f(): raise SystemExit(0)", is_kind("exception")),
        "exit while loading": Escape("raise SystemExit(0)", is_kind("exception")),
        "segfault": Escape("import ctypes\ndef f(): ctypes.string_at(1)", is_kind("crash")),
        "deep recursion": Escape(
            "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n"
            "    def __getattr__(self, n): return getattr(self, n + 'x')"
            "\ndef f(): return A().x",
            is_kind("crash", "exception", "memory", "timeout"),
        ),
        "hostile equality": Escape(
            "class A(int):\n    def __eq__(self, o): return True\ndef f(): return A(1)",
            lambda outcome: type(outcome.value) is int and outcome.value == 1,
        ),
        "hostile message": Escape(
            "class A(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(): raise A", is_kind("exception")
        ),
        "patched builtins": Escape(
            "import builtins, sys\nfor n in ['len', 'type', 'isinstance', 'int', 'bytes']: setattr(builtins, n, None)\n"
            "def f(): return 1",
            is_kind("crash", "exception"),
        ),
        "disk": Escape(
            "def f():\n    n = 0\n    try:\n        with open('/tmp/x', 'wb', 0) as file:\n"
            "            while n < 99 << 20: n += file.write(bytes(1 << 16))\n    except OSError: pass\n"
            "    return n >> 20",
            lambda outcome: outcome.kind == "value" and outcome.value <= LIMITS.disk_mb,
        ),
        "disk in many files": Escape(
            "def f():\n    n = 0\n    try:\n        while n < 99 << 20:\n"
            "            with open(f'/tmp/{n}', 'wb') as file:\n"
            "                n += file.write(bytes(1 << 20))\n    except OSError: pass\n    return n >> 20",
            lambda outcome: outcome.kind == "value" and outcome.value <= LIMITS.disk_mb,
        ),
        "inodes": Escape(
            "import os\ndef f():\n    n = 0\n    try:\n        while n < 9999:\n            os.mkdir(f'/tmp/{n}')\n"
            "            n += 1\n    except OSError: pass\n    return n",
            lambda outcome: outcome.kind == "value" and 0 < outcome.value < 9999,
        ),
        "shared memory": Escape(
            "def f():\n    n = 0\n    try:\n        with open('/dev/shm/x', 'wb', 0) as file:\n"
            "            while n < 99 << 20: n += file.write(bytes(1 << 16))\n    except OSError: pass\n"
            "    return n >> 20",
            lambda outcome: outcome.kind == "value" and outcome.value <= LIMITS.disk_mb,
        ),
        "memory file": system_call("memfd_create(b'x', 0)"),
        "System V shared memory": system_call("shmget(0, 9999, 0o1600)"),
        "write to the system": refused("open('/usr/lib/x', 'w')"),
        "write to the root": refused("open('/x', 'w')"),
        "write to the devices": refused("open('/dev/x', 'w')"),
        "remove the interpreter": refused("os.unlink(os.__file__)"),
        "read a file of the user": refused(f"open({secret!r}).read()"),
        # It may have made one of that name in a folder of its own; `outcomes` looks at the user's.
        "write a file of the user": Escape(f"def f(): open({secret!r}, 'w').write('x')", is_kind("value", "exception")),
        "read the users": refused("open('/etc/passwd').read()"),
        "read the shadow": refused("open('/etc/shadow').read()"),
        "processes of others": refused("os.listdir('/proc/1')"),
        "own environment file": refused("open('/proc/self/environ').read()"),
        "system folders": Escape(
            "import os\ndef f(): return [n for n in ['/home', '/proc', '/sys', '/var', '/bin', '/usr/bin/env'] if "
            "os.path.exists(n)]",
            is_value([]),
        ),
        "environment": Escape(
            "import os\ndef f(): return sorted(os.environ)",
            is_value(["HOME", "LC_ALL", "OMP_NUM_THREADS", "PWD", "PYTHONHASHSEED", "TMPDIR"]),
        ),
        "network of the host": refused(f"socket.create_connection(('127.0.0.1', {port}), 1)"),
        "network": refused("socket.create_connection(('192.0.2.1', 80), 1)"),
        "abstract socket of the host": refused(f"socket.socket(socket.AF_UNIX).connect(chr(0) + 'ruyi-test-{port}')"),
        "virtual machine's socket": refused("socket.socket(40, 1)"),
        "netlink": refused("socket.socket(16, 3)"),
        "network of its own": refused("socket.socket()"),
        "network of its own, IPv6": refused("socket.socket(socket.AF_INET6)"),
        "larger socket buffers": refused("socket.socketpair()[0].setsockopt(1, socket.SO_SNDBUF, 1 << 30)"),
        "many sockets": refused("[socket.socketpair() for _ in range(32)]"),
        "lock of a host's file": refused("fcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX)", "import fcntl\n"),
        "record lock of one": refused(
            "fcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH | fcntl.LOCK_NB)", "import fcntl\n"
        ),
        "lease of one": refused("fcntl.fcntl(os.open(os.__file__, 0), fcntl.F_SETLEASE, 1)", "import fcntl\n"),
        "watch of one": Escape(CALL + "def f(): return libc.inotify_init(), libc.inotify_init1(0)", is_value((-1, -1))),
        "raw socket": refused("socket.socket(2, 3, 1)"),
        "ptrace": system_call("ptrace(0, 0, 0, 0)"),
        "mount": system_call("mount(b'x', b'/tmp', b'tmpfs', 0, None)"),
        "unmount": system_call("umount2(b'/usr/lib', 2)"),
        "user namespace": system_call("unshare(0x10000000)"),
        "another's memory": system_call("process_vm_readv(1, None, 0, None, 0, 0)"),
        "keys": system_call("syscall(250, 0, -3, 0)" if os.uname().machine == "x86_64" else "unshare(0x20000)"),
        "terminal injection": Escape(
            "import fcntl, os\ndef f():\n    for path in ['/dev/tty', '/dev/pts/0', '/dev/console']:\n"
            "        try: os.open(path, 2)"
            "\n        except OSError: continue\n        return path\n    try: fcntl.ioctl(0, 0x5412, b'x')\n"
            "    except OSError: return 'refused'",
            is_value("refused"),
        ),
        "become root": refused("os.setuid(0)" if os.geteuid() == 0 else "os.setuid(1)"),
        "raised limits": Escape(
            "import resource\ndef f():\n    for name in ['RLIMIT_NPROC', 'RLIMIT_AS', 'RLIMIT_FSIZE', 'RLIMIT_CPU']:\n"
            "        n = getattr(resource, name)\n        soft, hard = resource.getrlimit(n)\n"
            "        try: resource.setrlimit(n, (hard + 1, hard + 1))\n        except (OSError, ValueError): continue\n"
            "        return name\n    return resource.getrlimit(resource.RLIMIT_CORE)",
            is_value((0, 0)),
        ),
        "rights": Escape(
            f"{CALL}import os\ndef f():\n    header, data = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 "
            "* 6)()\n"
            "    libc.capget(header, data)\n    bounding = sum(libc.prctl(23, n, 0, 0, 0) for n in range(38))\n"
            "    return sum(data), bounding, libc.prctl(39, 0, 0, 0, 0), libc.prctl(21, 0, 0, 0, 0), "
            "os.getgroups()[:0], "
            "os.getuid() == 0, os.getsid(0) == os.getpid()",
            is_value((0, 0, 1, 2, [], False, True)),
        ),
        "descriptors": Escape(
            "import os\ndef f():\n    found = []\n    for n in range(200):\n        try: os.fstat(n)\n"
            "        except OSError: continue"
            "\n        found.append(n)\n    return found",
            is_value([0, 1, 2, 3]),
        ),
        "frames and objects": Escape(
            "import gc, sys\ndef f(x):\n    gc.collect()\n    frame, seen = sys._getframe(), []\n    while frame:\n"
            "        seen.append(repr(frame.f_locals) + repr(list(frame.f_globals)))\n        frame = frame.f_back\n"
            "    return ''.join(['what is ', 'right']) in repr(seen) + repr(gc.get_objects())",
            is_value(False),
            ["input"],
        ),
        "modules of the harness": Escape(
            "import sys\ndef f(): return [name for name in sys.modules if 'ruyi' in name]", is_value([])
        ),
        "harness imported": Escape("def f():\n    import ruyi_rl", is_kind("exception")),
    }


def outcomes(options: SandboxOptions, slots: int = 3) -> dict[str, str]:
    """Name -> what was wrong with the outcome, "" where all is right: each escape once, `slots` at a time."""
    with (
        tempfile.NamedTemporaryFile("w") as secret,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        Sandbox(options, slots) as sandbox,
        ThreadPoolExecutor(slots) as threads,
    ):
        secret.write("secret")
        secret.flush()
        port = server.getsockname()[1]
        abstract.bind(f"\0ruyi-test-{port}")
        abstract.listen()

        def attempt(escape: Escape) -> str:
            with sandbox.open(escape.program) as program:
                outcome = program.call("f", escape.args)
            problem = "" if escape.right(outcome) else str(outcome)[:300]
            with sandbox.open("def f(x): return x + 1") as program:
                following = program.call("f", [41])
            if following.value != 42:
                problem += f" and the next program: {following}"
            return problem

        trials = escapes(secret.name, port)
        found = dict(zip(trials, threads.map(attempt, trials.values()), strict=True))
        with open(secret.name) as file:
            found["the user's file"] = "" if file.read() == "secret" else "changed"
    return found


if __name__ == "__main__":
    asked = replace(LIMITS, warm=sys.argv[1] == "warm")
    reason = unconfinable(asked)
    print(json.dumps({"unconfinable": reason} if reason else outcomes(asked)))
