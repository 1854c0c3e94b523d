"""A seccomp filter: system calls that no program needs and that reach past its namespaces, or have done so before.

Refused with EPERM: other processes' memory, mounts, namespaces, kernel modules, keys, bpf, performance counters,
io_uring, the clock, terminal injection; System V shared memory and memory files, which no quota of a folder bounds;
locks and watches of files, which hold for the host's processes, too. Sockets are Unix ones only: there is no network to
reach, the next program would find the ports of the last one, and memory limits do not count what TCP buffers; nor may
their buffers grow. The rules are those of the classic BPF of seccomp(2): 8 bytes an instruction.
"""

import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
_NAMESPACES = 0x7E020000
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_LOCKS = (6, 7, 37, 38, 1024, 1026)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW, F_SETLEASE, F_NOTIFY
_BUFFERS = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF, SO_SNDBUFFORCE, SO_RCVBUFFORCE
_UNIX = 1
_CLONE3 = 435
# Name, number on x86_64, number on aarch64; "-" where a machine has no such call.
_REFUSED = """
_sysctl 156 -              acct 163 89                add_key 248 217            adjtimex 159 171
bpf 321 280                chroot 161 51              clock_adjtime 305 266      clock_settime 227 112
delete_module 176 106      fanotify_init 300 262      finit_module 313 273       flock 73 32
fsconfig 431 431           inotify_add_watch 254 27  inotify_init 253 -         inotify_init1 294 26
fsmount 432 432            fsopen 430 430             fspick 433 433             init_module 175 105
io_uring_enter 426 426     io_uring_register 427 427  io_uring_setup 425 425     ioperm 173 -
iopl 172 -                 kcmp 312 272               kexec_file_load 320 294    kexec_load 246 104
keyctl 250 219             lookup_dcookie 212 18      mbind 237 235              memfd_create 319 279
memfd_secret 447 447       migrate_pages 256 238      modify_ldt 154 -           mount 165 40
mount_setattr 442 442      move_mount 429 429         move_pages 279 239         msgget 68 186
name_to_handle_at 303 264  nfsservctl 180 42          open_by_handle_at 304 265  open_tree 428 428
perf_event_open 298 241    personality 135 92         pidfd_getfd 438 438        pivot_root 155 41
process_madvise 440 440    process_vm_readv 310 270   process_vm_writev 311 271  ptrace 101 117
quotactl 179 60            quotactl_fd 443 443        reboot 169 142             request_key 249 218
semget 64 190              set_mempolicy 238 237      setdomainname 171 162      sethostname 170 161
setns 308 268              settimeofday 164 170       shmget 29 194              swapoff 168 225
swapon 167 224             sysfs 139 -                syslog 103 116             umount2 166 39
unshare 272 97             uselib 134 -               userfaultfd 323 282        vhangup 153 58
vmsplice 278 75
"""


@dataclass(frozen=True)
class Architecture:
    """The numbers of one machine: its audit code, and its calls whose arguments count."""

    column: int
    audit: int
    clone: int
    ioctl: int
    fcntl: int
    setsockopt: int
    socket: int

    def refused(self) -> list[int]:
        """The numbers of the calls that are always refused."""
        columns = iter(_REFUSED.split())
        numbers = [row[self.column] for row in zip(columns, columns, columns, strict=True)]
        return [int(number) for number in numbers if number != "-"]


ARCHITECTURES = {
    "x86_64": Architecture(column=1, audit=0xC000003E, clone=56, ioctl=16, fcntl=72, setsockopt=54, socket=41),
    "aarch64": Architecture(column=2, audit=0xC00000B7, clone=220, ioctl=29, fcntl=25, setsockopt=208, socket=198),
}


def seccomp_filter(machine: str) -> bytes:
    """The filter for a machine as `platform.machine()` names it; b"" for one whose call numbers are not known here."""
    numbers = ARCHITECTURES.get(machine)
    if numbers is None:
        return b""
    refuse = _instruction(_RETURN, _ERRNO | _EPERM)
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, numbers.audit, 1, 0),
        refuse,
        _instruction(_LOAD, _NUMBER),
        # The x32 calls of x86_64 have this bit, and other numbers.
        _instruction(_AT_LEAST, 0x40000000, 0, 1),
        refuse,
    ]
    for call in numbers.refused():
        code += [_instruction(_EQUAL, call, 0, 1), refuse]
    # Its flags are in memory, out of a filter's reach; C libraries go on with `clone` where it is missing.
    code += [_instruction(_EQUAL, _CLONE3, 0, 1), _instruction(_RETURN, _ERRNO | _ENOSYS)]
    code += [
        _instruction(_EQUAL, numbers.clone, 0, 4),
        _instruction(_LOAD, _FIRST),
        _instruction(_ANY_BIT, _NAMESPACES, 0, 1),
        refuse,
        _instruction(_RETURN, _ALLOW),
    ]
    code += _refuse_values(numbers.ioctl, _SECOND, _TERMINAL)
    code += _refuse_values(numbers.fcntl, _SECOND, _LOCKS)
    code += _refuse_values(numbers.setsockopt, _THIRD, _BUFFERS)
    code += [
        _instruction(_EQUAL, numbers.socket, 0, 3),
        _instruction(_LOAD, _FIRST),
        _instruction(_EQUAL, _UNIX, 1, 0),
        _instruction(_RETURN, _ERRNO | _EAFNOSUPPORT),
    ]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _refuse_values(call: int, argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Refuse a call where one of its arguments has one of these values."""
    last = len(values) - 1
    return [
        _instruction(_EQUAL, call, 0, len(values) + 3),
        _instruction(_LOAD, argument),
        *(_instruction(_EQUAL, value, last - index, index == last) for index, value in enumerate(values)),
        _instruction(_RETURN, _ERRNO | _EPERM),
        _instruction(_RETURN, _ALLOW),
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
