"""Runs a program as a runtime runs a hardened container: python confined.py JSON (the fields of `Confinement`).

Run as root by this machine's Python. The program is process 1 of a PID namespace, in user, mount, network, IPC, UTS and
cgroup namespaces of its own, with the tree as its read-only root (by pivot_root), as another user without capabilities
that cannot get any, behind a seccomp filter that refuses what Docker's and containerd's own refuse of what looks at
processes.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

FIRST_UID, UIDS = 100_000, 65_536
"""The machine's ids of the users in a user namespace."""
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x20000000, 0x40000000, 0x00020000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
LAST_CAP = 40
SYS_PIVOT_ROOT = 155
MNT_DETACH = 2
# x86-64: ptrace, mount, umount2, kexec_load, perf_event_open, process_vm_readv and _writev, bpf, userfaultfd.
REFUSED_CALLS = (101, 165, 166, 246, 298, 310, 311, 321, 323)
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Confinement:
    root: str
    command: list[str]
    binds: list[tuple[str, str]] = field(default_factory=list)
    """(what, where in the root)."""
    cgroups: list[str] = field(default_factory=list)
    """Folders that exist; the first process enters them before it gets a namespace of its own."""
    uid: int = 1001
    """In its own user namespace."""
    own_users: bool = True

    def as_words(self) -> list[str]:
        return [sys.executable, "-B", __file__, json.dumps(asdict(self))]


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def run(wanted: Confinement) -> int:
    for folder in wanted.cgroups:
        Path(folder, "cgroup.procs").write_text(str(os.getpid()))
    asks, asked = os.pipe()
    answered, answers = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(asks)
        os.close(answers)
        enter(wanted, asked, answered)
    os.close(asked)
    os.close(answered)
    os.read(asks, 1)
    if wanted.own_users:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {FIRST_UID} {UIDS}\n")
    os.write(answers, b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enter(wanted: Confinement, asked: int, answered: int) -> None:
    """Makes the namespaces, of which the user namespace owns the others, and waits for the program."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if wanted.own_users:
        checked(libc.unshare(CLONE_NEWUSER), "unshare")
    os.write(asked, b"x")
    os.read(answered, 1)
    os.close(asked)
    os.close(answered)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    own = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    checked(libc.unshare(own), "unshare")
    child = os.fork()
    if child == 0:
        confine(wanted)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def confine(wanted: Confinement) -> None:
    """Becomes the program."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    socket.sethostname("container")
    bring_up("lo")
    root = wanted.root
    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    mount("-t", "proc", "proc", f"{root}/proc")
    for folder in ("tmp", "dev/shm"):
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/{folder}")
    for what, where in wanted.binds:
        mount("--bind", what, f"{root}{where}")
    mount("-o", "remount,bind,ro", root)
    os.chdir(root)
    checked(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    for capability in range(LAST_CAP + 1):
        checked(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    os.setresgid(wanted.uid, wanted.uid, wanted.uid)
    os.setresuid(wanted.uid, wanted.uid, wanted.uid)
    # Another user's process does not end with its parent any more.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    refuse(REFUSED_CALLS)
    os.execvp(wanted.command[0], wanted.command)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def bring_up(device: str) -> None:
    siocgifflags, siocsifflags, iff_up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, siocgifflags, struct.pack("16sH14x", device.encode(), 0))
        (flags,) = struct.unpack_from("16xH", request)
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sH14x", device.encode(), flags | iff_up))


def refuse(numbers: tuple[int, ...]) -> None:
    """EPERM for these calls, by a filter that every program started from here on has."""
    load, equal, end = 0x20, 0x15, 0x06
    allow, refusal = 0x7FFF0000, 0x00050000 | 1
    code = [(load, 0, 0, 0)]
    code += [(equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    code += [(end, 0, 0, allow), (end, 0, 0, refusal)]
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    kept = ctypes.create_string_buffer(program)
    header = struct.pack("H6xP", len(code), ctypes.addressof(kept))
    checked(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0), "seccomp")


if __name__ == "__main__":
    sys.exit(run(Confinement(**json.loads(sys.argv[1]))))
