"""What would let this process do what the kernel refused: the capabilities that it lacks, else what confines it.

Source: CapEff, Seccomp and the user namespace of /proc/self, the labels of AppArmor and SELinux, the sysctl of
Yama, and lockdown. A capability that is there is never asked for: then something else refuses, and that is named.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

BITS = {
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "SETGID": 6,
    "SETUID": 7,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_RESOURCE": 24,
    "PERFMON": 38,
    "BPF": 39,
}
"""linux/capability.h."""
FOR_BPF = ("BPF", "PERFMON")
LAST = Path("/proc/sys/kernel/cap_last_cap")
ENOUGH_LOCKED_BYTES = 256 << 20
EVERY_ID = ["0", "0", "4294967295"]
"""The user namespace of the node maps every id to itself."""


def lacking(*names: str) -> tuple[str, ...]:
    """Those of these capabilities that are not in force, in the kernel's own terms.

    SYS_ADMIN stands in for BPF and PERFMON; a kernel that does not know these yet (before 5.8) wants it instead.
    DAC_OVERRIDE, which container runtimes grant by default, stands in for DAC_READ_SEARCH.
    """
    effective = _effective()
    absent = [name for name in names if not effective >> BITS[name] & 1]
    if effective >> BITS["DAC_OVERRIDE"] & 1:
        absent = [name for name in absent if name != "DAC_READ_SEARCH"]
    if not set(absent).isdisjoint(FOR_BPF):
        if effective >> BITS["SYS_ADMIN"] & 1:
            absent = [name for name in absent if name not in FOR_BPF]
        elif not _knows(BITS["BPF"]):
            absent = [name for name in absent if name not in FOR_BPF] + ["SYS_ADMIN"]
    return tuple(dict.fromkeys(absent))


def remedy(*names: str, otherwise: str = "", call: bool = True) -> str:
    """What would permit something that needs all of these capabilities, once the kernel has refused it.

    `otherwise`: what would help as well, "run as the target's user". `call`: it is a system call of its own, which
    a seccomp profile can forbid; reading a file is not.
    """
    absent = lacking(*names)
    if not absent:
        return confined(call=call)
    ways = [] if os.geteuid() == 0 else ["run as root"]
    return ", or ".join([*ways, f"grant {caps(absent)}", *([otherwise] if otherwise else [])])


def to_read(pid: int, *, otherwise: str = "run as the target's user") -> str:
    """As `remedy`, for a file of /proc/PID that its owner alone may read."""
    owner = None
    with suppress(OSError):
        owner = os.stat(f"/proc/{pid}").st_uid
    needs = ("SYS_PTRACE",) if owner == os.geteuid() else ("SYS_PTRACE", "DAC_READ_SEARCH")
    return remedy(*needs, otherwise="" if owner == os.geteuid() else otherwise, call=False)


def to_enter(pid: int | str, *names: str) -> str:
    """As `remedy`, for something that needs `names` in the network namespace that `pid` lives in."""
    ways: tuple[str, ...] = ()
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            ways = ("SYS_ADMIN",)
    except OSError:
        ways = ("SYS_PTRACE", "SYS_ADMIN")
    return remedy(*names, *ways)


def caps(names: Sequence[str]) -> str:
    """As in a sentence: CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE."""
    *most, last = (f"CAP_{name}" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def confined(*, call: bool = True, locks_memory: bool = False) -> str:
    """What may refuse although no capability is lacking. `locks_memory`: as BPF did before Linux 5.11."""
    found = [
        way
        for way in (
            _user_namespace(),
            _label(),
            _yama(),
            _lockdown() if call else "",
            _seccomp() if call else "",
        )
        if way
    ]
    if not found and locks_memory and (way := _locked_memory()):
        found = [way]
    if not found:
        found = ["a security module or a sandbox does; the kernel's log (journalctl -k) may say which"]
    return f"no capability is lacking: {'; or '.join(found)}"


def _user_namespace() -> str:
    if _words("/proc/self/uid_map") in (EVERY_ID, []):
        return ""
    return "capabilities count only inside its own user namespace: run it in the node's (hostUsers: true)"


def _label() -> str:
    """AppArmor's "docker-default (enforce)", SELinux's "system_u:system_r:container_t:s0"."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        words = _words(path)
        if len(words) == 2 and words[1] == "(enforce)":
            return f"its AppArmor profile {words[0]} does (appArmorProfile: type: Unconfined)"
        if words and words[0].count(":") >= 3 and ":unconfined_t:" not in words[0]:
            return f"its SELinux context {words[0].rstrip(chr(0))} does (seLinuxOptions: type: spc_t)"
    return ""


def _yama() -> str:
    if _words("/proc/sys/kernel/yama/ptrace_scope") == ["3"]:
        return "kernel.yama.ptrace_scope is 3, which forbids everybody to look, until the next boot"
    return ""


def _lockdown() -> str:
    if locked_down():
        return "the kernel is locked down: boot with lockdown=integrity or none"
    return ""


def locked_down() -> bool:
    """So far that BPF may not read the kernel's memory. By the boot's arguments where securityfs cannot be seen."""
    words = _words("/sys/kernel/security/lockdown")
    return "[confidentiality]" in words or (not words and "lockdown=confidentiality" in _words("/proc/cmdline"))


def _seccomp() -> str:
    try:
        filtered = "\nSeccomp:\t2\n" in Path("/proc/self/status").read_text()
    except OSError:
        return ""
    return "its seccomp profile does (packaging/seccomp.json allows what is needed)" if filtered else ""


def _locked_memory() -> str:
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most == resource.RLIM_INFINITY or most >= ENOUGH_LOCKED_BYTES or _effective() >> BITS["SYS_RESOURCE"] & 1:
        return ""
    return (
        f"before Linux 5.11 its limit of locked memory ({most >> 10} KiB) does (LimitMEMLOCK=infinity, "
        "or grant CAP_SYS_RESOURCE)"
    )


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").split()
    except (OSError, ValueError):
        return []


def _effective() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def _knows(bit: int) -> bool:
    return not (words := _words(str(LAST))) or int(words[0]) >= bit
