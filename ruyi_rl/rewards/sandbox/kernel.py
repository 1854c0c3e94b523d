"""System calls that Python's standard library lacks, for the trusted side inside a sandbox.

Built on `_ctypes`: the package `ctypes` takes four milliseconds to import, a third of a confined program's start.
"""

from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, addressof, dlopen, dlsym, get_errno

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV = 2, 4
_LAST_CAPABILITY, _EINVAL = 40, 22
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITIES_V3 = 0x20080522


class _Int(_SimpleCData):
    _type_ = "i"


class _Long(_SimpleCData):
    _type_ = "l"


class _Char(_SimpleCData):
    _type_ = "c"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 or -1; integers go as C long.

    Raises:
        OSError: it returned -1.
    """
    function = _Function(dlsym(dlopen(None, 2), name))
    if function(*(_Long(item) if isinstance(item, int) else item for item in arguments)) < 0:
        raise OSError(get_errno(), name)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; CLONE_NEWPID holds for the next child."""
    _call("unshare", flags)


def enter(process: int, flags: int) -> None:
    """Enter namespaces of the process that a pidfd names; CLONE_NEWPID holds for the next child."""
    _call("setns", process, flags)


def mount_tmpfs(path: str, size: int, inodes: int) -> None:
    """Mount an empty file system in memory, of `size` bytes and `inodes` files."""
    options = f"size={size},nr_inodes={inodes},mode=1777".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options)


def drop_capabilities() -> None:
    """Drop every capability, for this process and all that it starts, and forbid to gain any by starting a file."""
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = _CAPABILITIES_V3.to_bytes(4, "little") + bytes(4)
    _call("capset", header, bytes(24))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def bound_capabilities() -> None:
    """Empty the bounding set. Needs CAP_SETPCAP, and so comes before `drop_capabilities`."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as error:
            if error.errno == _EINVAL:  # an older kernel knows fewer
                return
            raise


def hide_memory() -> None:
    """No process of the same user may read this one's memory, and it leaves no core file."""
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def filter_calls(instructions: bytes) -> None:
    """Apply a seccomp filter to this process and all that it starts."""
    code = (_Char * len(instructions)).from_buffer_copy(instructions)
    program = (len(instructions) // 8).to_bytes(8, "little") + addressof(code).to_bytes(8, "little")
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)
