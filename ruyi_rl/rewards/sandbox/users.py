"""Users for programs: ids that nobody else on the machine has, one a slot, so that the kernel counts for each."""

import os
import socket

FIRST_USER, USERS = 1_879_000_000, 65_536


def claim_user() -> tuple[socket.socket, int]:
    """The lock and a user id that no other slot on this machine holds; the lock is a socket's name, gone with us."""
    for attempt in range(USERS):
        user = FIRST_USER + (os.getpid() * 7 + attempt) % USERS
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0ruyi-sandbox-user-{user}")
        except OSError:
            lock.close()
            continue
        return lock, user
    raise OSError(f"all user ids from {FIRST_USER} to {FIRST_USER + USERS - 1} are taken")
