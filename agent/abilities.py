"""What stucktrace needs from the machine, each as a test that uses it: on a child of its own, and on another user's.

Every test names what suffers without the ability and what would give it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stucktrace.collectors import permission, procfs

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Kernel

NOBODY = 65534
SYS_PIDFD_GETFD = 438
PR_SET_PDEATHSIG = 1
INIT_NAMESPACES = {"pid": procfs.NODES_PID_NAMESPACE, "cgroup": 0xEFFFFFFB}
"""Inodes of the node's own namespaces (include/linux/proc_ns.h)."""
DEADLINE_S = 10.0


@dataclass(frozen=True)
class Test:
    """One ability: how it is tested, what needs it, what would give it."""

    name: str
    serves: str
    remedy: str
    use: Callable[[int], str]
    """Takes the child's pid, returns what was seen. Any exception means that it does not work, and says why."""
    needed: bool = True
    """False: only something to know about."""
    needs: tuple[str, ...] = ()
    """Capabilities. Those that lack are named; where none does, what else may refuse."""
    call: bool = True
    """It is a system call of its own, which a seccomp profile can forbid."""


class Refused(Exception):
    """The test ran and the answer is no. `str()` is the reason; `remedy` replaces the test's own."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


WITH_BTF = "a kernel with CONFIG_DEBUG_INFO_BTF=y"


@contextmanager
def a_child() -> Iterator[int]:
    """The pid of a copy of this very process that sleeps, ended with the block: Python, and as permitted as we are."""
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            time.sleep(DEADLINE_S * len(TESTS))
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextmanager
def another_users_child() -> Iterator[int]:
    """The pid of a process of the user nobody, ended with the block."""
    child = subprocess.Popen(("sleep", "60"), stdin=subprocess.DEVNULL, user=NOBODY, cwd="/")
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


# What each test does


def _btf(_pid: int) -> str:
    with open("/sys/kernel/btf/vmlinux", "rb") as types:
        types.read(16)
        return f"{os.fstat(types.fileno()).st_size >> 20} MiB of kernel types"


def _bcc(_pid: int) -> str:
    """Compiles and loads a program, where that is what serves."""
    from stucktrace.collectors import bcc_node
    from stucktrace.collectors.kernel import has_btf, open_kernel

    missing = bcc_node.why_not()
    if has_btf():
        return "not needed: the kernel has BTF" + (", and it is ready too" if missing is None else "")
    if missing is not None:
        raise Refused(missing.because, missing.remedy)
    began = time.monotonic()
    kernel = open_kernel("bcc").kernel
    assert kernel is not None
    with kernel:
        kernel.load("waits")
    return f"compiled a program in {time.monotonic() - began:.1f} s"


def _kernel() -> Kernel:
    """By whichever engine serves."""
    from stucktrace.collectors.kernel import open_kernel

    opened = open_kernel("auto")
    if opened.kernel is None:
        raise Refused(opened.missing[0].because, opened.missing[0].remedy)
    return opened.kernel


def _iterators(pid: int) -> str:
    from stucktrace.collectors import threads

    with _kernel() as kernel:
        if kernel.engine == "bcc":
            raise Refused("engine bcc has none: threads and sockets are read from /proc", WITH_BTF)
        if not kernel.iterates:
            raise Refused("this kernel has none: threads and sockets are read from /proc", "Linux 5.8 or newer")
        found = threads.collect((pid,), kernel).get(pid, ())
        means = kernel.hooks.get("threads", "")
    if not means.startswith("iter"):
        raise Refused(f"the kernel refused the thread iterator ({means or 'not used'})")
    return f"saw {len(found)} threads of a child"


def _waits(pid: int) -> str:
    from stucktrace.collectors import waits

    with _kernel() as kernel:
        with waits.watching((pid,), kernel) as calls:
            complete, missing = calls.complete, calls.missing
        if not complete:
            raise Refused("; ".join(entry.because for entry in missing) or "returns of calls were lost")
        return f"attached by {kernel.hooks['waits']}, and detached"


def _rungs(_pid: int) -> str:
    """Each means that hooks can have, by one program that is attached and detached again."""
    from stucktrace.collectors import libbpf
    from stucktrace.collectors.kernel import Kernel, open_kernel

    with open_kernel("core").kernel or Kernel() as kernel:
        tried: dict[str, Callable[[libbpf.Object], libbpf.Link]] = {
            "fexit end_sched_yield": lambda loaded: loaded.attach("end_sched_yield"),
            "tracepoint enter_nothing": lambda loaded: loaded.attach_tracepoint(
                "enter_nothing", "syscalls", "sys_enter_sched_yield"
            ),
            "tp_btf count_return": lambda loaded: loaded.attach("count_return"),
            "raw_tp count_return_raw": lambda loaded: loaded.attach("count_return_raw"),
        }
        works, refused = [], []
        for name, attach in tried.items():
            means, program = name.split()
            try:
                attach(kernel.load("waits", frozenset({program}))).close()
                works.append(means)
            except libbpf.BpfError as error:
                refused.append(f"{means} ({os.strerror(error.errno or 0)})")
            kernel.unload("waits")
    works.append("ring buffer" if libbpf.has_ring_buffers() else "perf buffer")
    return ", ".join(works) + (f"; refused: {', '.join(refused)}" if refused else "")


def _conntrack_functions(_pid: int) -> str:
    from stucktrace.collectors import conntrack_hooks, ctnetlink

    if not ctnetlink.is_there():
        return "this kernel tracks no connections"
    with _kernel() as kernel:
        try:
            stream = conntrack_hooks.Stream(kernel)
        except OSError as error:
            return f"ctnetlink serves: the kernel's functions cannot be hooked ({error})"
        stream.close()
        return f"attached by {stream.means}"


def _tcp(pid: int) -> str:
    from stucktrace.collectors import tcp

    with _kernel() as kernel:
        with tcp.watching((pid,), kernel) as watch:
            means, missing = kernel.hooks.get("tcp", ""), watch.missing
        if not means:
            raise Refused("; ".join(entry.because for entry in missing))
        return f"attached by {means}"


def _python(pid: int) -> str:
    from stucktrace.collectors import python, threads
    from stucktrace.collectors.process import read_process

    found = python.collect(read_process(pid), threads.collect((pid,), None)[pid], native=False, show_locals=False)
    return f"read {len(found.threads)} Python stacks of a child"


def _memory(pid: int) -> str:
    from stucktrace.collectors import memory

    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        if " rw-p " in line:
            memory.read(pid, int(line.split("-")[0], 16), 16)
            return "read a child's memory"
    raise Refused("the child's mappings cannot be read")


def _pidfd_getfd(pid: int) -> str:
    pidfd = os.pidfd_open(pid)
    try:
        fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, 1, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        os.close(fd)
    finally:
        os.close(pidfd)
    return "duplicated a child's descriptor, and closed it"


def _sock_diag(_pid: int) -> str:
    netlink_sock_diag = 4
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_sock_diag) as diag, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        diag.settimeout(DEADLINE_S)
        by_family, dump, all_states, everything = 20, 0x301, 1 << 10, bytes(48)
        request = bytes((socket.AF_INET, socket.IPPROTO_TCP, 0, 0)) + all_states.to_bytes(4, sys.byteorder) + everything
        header = b"".join(
            number.to_bytes(size, sys.byteorder)
            for number, size in ((16 + len(request), 4), (by_family, 2), (dump, 2), (1, 4), (0, 4))
        )
        diag.send(header + request)
        answer = diag.recv(1 << 16)
        kind = int.from_bytes(answer[4:6], sys.byteorder)
    if kind != by_family:
        raise Refused("the kernel does not answer sock_diag", "modprobe tcp_diag on the node")
    return "listed the listening sockets of this network namespace"


def _setns(_pid: int) -> str:
    from stucktrace.collectors.netns import CLONE_NEWNET

    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException), open("/proc/self/ns/net") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            # Named, for a sandbox can allow this kind of namespace alone.
            status = 0 if libc.setns(namespace.fileno(), CLONE_NEWNET) == 0 else ctypes.get_errno()
        os._exit(status & 0xFF)
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(os.waitstatus_to_exitcode(status), "setns")
    return "entered a network namespace"


def _other_user(_pid: int) -> str:
    if os.geteuid() != NOBODY:
        with suppress(PermissionError), another_users_child() as pid:
            return _read_of(pid)
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid != os.geteuid():
                return _read_of(int(entry.name))
    return "no other user's process to be seen"


def _read_of(pid: int) -> str:
    for name, read in (("fd", os.listdir), ("syscall", _first_line), ("maps", _first_line)):
        try:
            read(f"/proc/{pid}/{name}")
        except OSError as error:
            raise Refused(f"/proc/PID/{name} of another user's process: {error.strerror}") from None
    return "read another user's process"


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline()


def _hidepid(_pid: int) -> str:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        option = re.search(r"hidepid=(\w+)", rest)
        if fields.split()[4] == "/proc" and option and option[1] not in {"0", "off"} and not Path("/proc/1").exists():
            raise Refused(f"/proc is mounted with hidepid={option[1]}")
    return "/proc shows all processes of this PID namespace"


def _yama(_pid: int) -> str:
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return "no Yama"
    if scope == 3:
        raise Refused(
            "kernel.yama.ptrace_scope is 3: nobody may look", "sysctl kernel.yama.ptrace_scope=1 needs a reboot"
        )
    if scope and permission.lacking("SYS_PTRACE"):
        raise Refused(f"kernel.yama.ptrace_scope is {scope}: only children, without CAP_SYS_PTRACE")
    return f"kernel.yama.ptrace_scope is {scope}"


def _lockdown(_pid: int) -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return "not locked down, as far as can be seen"
    mode = re.search(r"\[(\w+)\]", text)
    if mode and mode[1] == "confidentiality":
        raise Refused("lockdown=confidentiality forbids BPF to read the kernel's memory")
    return f"lockdown={mode[1] if mode else 'unknown'}"


def _namespace(kind: str) -> Callable[[int], str]:
    def own(_pid: int) -> str:
        if Path(f"/proc/self/ns/{kind}").stat().st_ino != INIT_NAMESPACES[kind]:
            raise Refused(f"stucktrace runs in a {kind} namespace of its own")
        return f"in the node's {kind} namespace"

    return own


def _conntrack(_pid: int) -> str:
    from stucktrace.collectors import conntrack_stats

    fact = conntrack_stats.read()
    return "the kernel tracks no connections" if fact is None else f"asked the table: {fact.count} entries"


def _packets(pid: int) -> str:
    from stucktrace.collectors import capture

    capture.open_in(pid, ()).close()
    return "opened a packet socket with a filter"


def _raw_socket(_pid: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW):
        return "opened one"


def _destroy(_pid: int) -> str:
    """A connection of our own, over loopback."""
    from stucktrace.collectors import sock_destroy
    from stucktrace.facts import SocketFact

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as own:
        local, remote = (f"127.0.0.1:{name[1]}" for name in (own.getsockname(), own.getpeername()))
        inode = os.fstat(own.fileno()).st_ino
        fact = SocketFact((own.fileno(),), inode, "inet", "tcp", "ESTABLISHED", local, remote)
        if not sock_destroy.can_destroy(os.getpid(), fact):
            raise Refused(
                "the kernel has no SOCK_DESTROY", "a kernel with CONFIG_INET_DIAG_DESTROY=y; shutdown(2) serves"
            )
        sock_destroy.destroy(os.getpid(), fact)
    return "ended a connection of its own"


TESTS = (
    Test("btf", "the BPF engine core, with its iterators", WITH_BTF, _btf),
    Test("bcc", "the BPF engine where the kernel has no BTF", "", _bcc, needed=False),
    Test("lockdown", "the BPF engine", "boot with lockdown=integrity or none, or use --engine none", _lockdown),
    Test(
        "bpf-iterators",
        "exact ages of waits; sockets in other network namespaces; timers and queues",
        "",
        _iterators,
        needs=permission.FOR_BPF,
    ),
    Test(
        "bpf-syscall-hooks",
        "the sampling window: what polls and spinning threads achieve",
        "",
        _waits,
        needs=permission.FOR_BPF,
    ),
    Test(
        "bpf-means",
        "hooks by other means",
        "none needed where one of them works",
        _rungs,
        needed=False,
        needs=permission.FOR_BPF,
    ),
    Test(
        "bpf-conntrack",
        "an evicted entry at once, with the reason; ctnetlink tells of it a little later",
        "none needed: ctnetlink serves",
        _conntrack_functions,
        needed=False,
        needs=permission.FOR_BPF,
    ),
    Test(
        "bpf-tcp-hooks",
        "the sampling window: retransmits and resets as they happen",
        "",
        _tcp,
        needs=permission.FOR_BPF,
    ),
    Test("python-stacks", "which code waits", "pip install py-spy", _python, needs=("SYS_PTRACE",)),
    Test("memory", "lock owners, poll sets", "", _memory, needs=("SYS_PTRACE",)),
    Test("pidfd-getfd", "socket options and TCP_INFO without BPF", "", _pidfd_getfd, needs=("SYS_PTRACE",)),
    Test(
        "sock-diag",
        "socket timers and queues without BPF",
        "allow AF_NETLINK in the container's seccomp profile",
        _sock_diag,
    ),
    Test(
        "setns",
        "--probe, unstick, amqp, rabbitmqctl and conntrack's events in other network namespaces",
        "",
        _setns,
        needed=False,
        needs=("SYS_ADMIN",),
    ),
    Test(
        "conntrack",
        "conntrack's rules and events",
        "",
        _conntrack,
        needed=False,
        needs=("NET_ADMIN",),
    ),
    Test(
        "other-users",
        "fd tables, system calls and mappings of other users' processes",
        "",
        _other_user,
        needs=("SYS_PTRACE", "DAC_READ_SEARCH"),
        call=False,
    ),
    Test("packets", "stucktrace amqp", "", _packets, needed=False, needs=("NET_RAW",)),
    Test("raw-sockets", "--probe", "", _raw_socket, needed=False, needs=("NET_RAW",)),
    Test("sock-destroy", "stucktrace unstick", "", _destroy, needed=False, needs=("NET_ADMIN",)),
    Test("hidepid", "finding processes, pipes and peers", "run as root, or mount -o remount,hidepid=0 /proc", _hidepid),
    Test("yama", "memory, stacks and descriptors of other processes", "", _yama, needs=("SYS_PTRACE",)),
    Test(
        "pid-namespace",
        "processes outside this PID namespace (pipe ends, peers, lock holders)",
        "hostPID: true in the pod, or kubectl debug --target; nothing to do when the target is in this one",
        _namespace("pid"),
        needed=False,
    ),
    Test(
        "cgroup-namespace",
        "container and pod ids of other containers",
        "run in the host's cgroup namespace (docker --cgroupns=host)",
        _namespace("cgroup"),
        needed=False,
    ),
)
