"""Which capability each feature needs, what it is for, and what is lost without it. Pure data.

Found out by taking each one away (tests/live/test_privileges.py does it again): for a target of another user in another
network namespace, as root of a container or as a user with ambient capabilities. docs/privileges.md is written from
this, packaging/ is held against it, and `stucktrace doctor` names what lacks. For the target's own user less is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

CAPABILITIES = {
    "BPF": (
        "loading the BPF programs (before Linux 5.8: SYS_ADMIN)",
        "the BPF engine: exact ages of waits, sockets of every network namespace, events as they happen. /proc is read "
        "instead, by the agent every 2 s in place of 0.25 s",
    ),
    "PERFMON": (
        "letting these programs read the kernel's memory (before Linux 5.8: SYS_ADMIN)",
        "the same as without BPF",
    ),
    "SYS_PTRACE": (
        "reading another process's memory, mappings and links (process_vm_readv, pidfd_getfd, /proc/PID)",
        "Python stacks, owners of locks, the work in hand, settings; and which network namespace a process is in",
    ),
    "DAC_READ_SEARCH": (
        "opening what only the owner may open: /proc/PID/{fd,syscall,environ,mem} and files of another user",
        "other users' fd tables (pipes, epoll sets, gunicorn's heartbeat) and, without BPF, their system calls",
    ),
    "SYS_ADMIN": (
        "entering another network namespace, or all namespaces of a broker (setns)",
        "what is done from inside of another namespace: --probe, unstick, amqp, rabbitmqctl, conntrack's events, and "
        "without BPF the timers of sockets there; the agent's figure of its programs' run time",
    ),
    "NET_ADMIN": (
        "asking netfilter (conntrack entries, its events and rules), and ending a socket (SOCK_DESTROY)",
        "conntrack's rules and events. How full a table is, and whether it has a connection's entry, is read from "
        "/proc/PID/net without it",
    ),
    "NET_RAW": ("packet and raw sockets", "amqp and --probe"),
    "SYS_CHROOT": ("taking the broker's root directory for rabbitmqctl", "--broker rabbitmqctl in a container"),
    "SETUID": ("running rabbitmqctl as the broker's user", "--broker rabbitmqctl in a container"),
    "SETGID": ("running rabbitmqctl as the broker's group", "--broker rabbitmqctl in a container"),
}
"""Name without CAP_ -> (what it is for, what is lost without it)."""

LOOKING = ("BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH")
READING = ("SYS_PTRACE", "DAC_READ_SEARCH")
AGENT = LOOKING
"""What packaging/ grants."""
ENTERING = ("SYS_ADMIN", "NET_ADMIN")
"""What packaging/ grants where the agent shall also enter network namespaces."""


@dataclass(frozen=True)
class Feature:
    name: str
    """As a user calls it."""
    needs: tuple[str, ...]
    note: str = ""


FEATURES = (
    Feature(
        "agent",
        AGENT,
        "With SYS_ADMIN and NET_ADMIN besides it follows conntrack entries by the kernel's events and reads the rules: "
        "a lost one is noticed at once, and can prove `half-open`. Without, it is looked for when a worker waits for "
        "an answer, and is one named assumption short of proof.",
    ),
    Feature("pid", LOOKING, "Your own process in your own PID namespace: none but BPF and PERFMON (Yama permitting)."),
    Feature(
        "pid --engine none",
        READING,
        "Timers and unacknowledged bytes of sockets in another network namespace also need SYS_ADMIN.",
    ),
    Feature("pid --native", LOOKING, "Threads that py-spy has to stop need no more."),
    Feature(
        "pid --probe",
        (*READING, "SYS_ADMIN", "NET_RAW"),
        "SYS_ADMIN stands in for BPF and PERFMON. In its own network namespace: without it, with those two.",
    ),
    Feature(
        "pid --broker rabbitmqctl",
        (*READING, "SYS_ADMIN", "SYS_CHROOT", "SETUID", "SETGID"),
        "The broker's management API (--broker http://...) needs none.",
    ),
    Feature("ps", LOOKING),
    Feature("record", LOOKING, "As `pid`."),
    Feature("replay", (), "A journal is explained anywhere."),
    Feature("audit", LOOKING, "Without BPF the sockets' options come by pidfd_getfd: SYS_PTRACE is enough."),
    Feature("amqp", (*READING, "SYS_ADMIN", "NET_RAW"), "In its own network namespace without SYS_ADMIN; --read none."),
    Feature("conntrack", (*READING, "SYS_ADMIN", "NET_ADMIN"), "Of its own network namespace without SYS_ADMIN."),
    Feature(
        "unstick",
        (*READING, "SYS_ADMIN", "NET_ADMIN"),
        "Where the kernel has no SOCK_DESTROY: SYS_PTRACE (shutdown of a duplicate).",
    ),
    Feature("probe-broker", ()),
    Feature("correlate", ()),
    Feature("doctor", (), "It tests what is there."),
)
