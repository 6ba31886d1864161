"""Runs a program where another process lives: in its namespaces, under its user, with what it needs of its environment.

Run as a program of its own (`python -I inside.py PID FILE...`): whoever enters a mount or PID namespace does not come
back. The first FILE that is there is run; its arguments come as JSON on stdin. Needs SYS_ADMIN, and ptrace access.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from contextlib import suppress

_NAMESPACES = ("user", "ipc", "uts", "net", "pid", "mnt")
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3."""
_KEPT = ("HOME", "PATH", "LANG", "LC_ALL")
_PREFIXES = ("RABBITMQ_", "ERL_EPMD_")


def main() -> None:
    pid, *programs = sys.argv[1:]
    arguments = json.load(sys.stdin)
    with open(f"/proc/{pid}/environ", "rb") as file:
        words = [word.decode(errors="surrogateescape").partition("=") for word in file.read().split(b"\0") if word]
    environ = {name: value for name, _, value in words if name in _KEPT or name.startswith(_PREFIXES)}
    process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_CLOEXEC)
    enter(pid)
    # Who it is, as its own user namespace counts.
    owner = os.fstat(process)
    harmless()
    with suppress(PermissionError):
        # A user namespace may forbid it: there are no groups to drop then.
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    child = os.fork()
    if child:
        # A PID namespace that was entered is that of children alone.
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    powerless()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    for program in (*programs, *beside(words, programs[0].rpartition("/")[2])):
        if os.access(program, os.X_OK):
            os.execve(program, [program, *arguments], environ)
    sys.stderr.write("it is not there\n")
    os._exit(127)


def beside(words: list[tuple[str, str, str]], name: str) -> list[str]:
    """Where else a program of this name may be: beside RabbitMQ's plugins (ERL_LIBS), and in the process's PATH."""
    folders = next((value.split(":") for key, _, value in words if key == "PATH"), [])
    libraries = next((value.split(":") for key, _, value in words if key == "ERL_LIBS"), [])
    own = [f"{library.rstrip('/').rpartition('/')[0]}/sbin" for library in libraries]
    return [f"{folder}/{name}" for folder in (*own, *folders) if folder.startswith("/")]


def harmless() -> None:
    """What is run next comes from the other process's files: it gets no capability, whoever that process is."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def powerless() -> None:
    """Also where the user entered is root, and SETPCAP is not there to empty the bounding set: what has no capability
    now gets none by executing a program, for no_new_privs is set."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "its capabilities cannot be given up")


def enter(pid: str) -> None:
    """All namespaces of a process that are not ours, its root as ours, and its working directory's root."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
    files = []
    for name in _NAMESPACES:
        path = f"/proc/{pid}/ns/{name}"
        if os.stat(path).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    for file in files:
        if libc.setns(file, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as problem:
        sys.stderr.write(f"{getattr(problem, 'strerror', None) or problem}\n")
        sys.exit(126)
