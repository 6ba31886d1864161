"""The process as a whole: who it is, what it runs, which role it has.

Source: /proc/PID/{stat,status,cmdline,exe,maps,cgroup}.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace

from stucktrace.collectors import (
    cgroups,
    command_line,
    containers,
    interpreter,
    packages,
    procfs,
    regions,
    startup,
    workers,
)
from stucktrace.errors import CannotInspect, KernelThread, NoSuchProcess
from stucktrace.facts import ProcessFact

_C_CLIENTS = re.compile(
    r"^(libpq|librdkafka|libmemcached|librabbitmq|libmysqlclient|libmariadb|libzmq|libcurl|libhiredis)\b"
)
_SIGKILL_BIT = 1 << 8


def read_process(pid: int) -> ProcessFact:
    """One process. Raises NoSuchProcess, KernelThread or NotPermitted; a zombie is a fact with state Z."""
    stat = procfs.read_stat(pid)
    if stat.kernel_thread:
        raise KernelThread(f"process {pid} ({stat.command}) is a kernel thread", "look at a process instead")
    status = procfs.read_status(pid)
    tgid = procfs.first_number(status.get("Tgid", ""), pid)
    if tgid != pid:
        raise NoSuchProcess(f"{pid} is a thread of process {tgid}, not a process", f"stucktrace pid {tgid}")
    argv = procfs.read_argv(pid)
    mapped, found = _interpreter(pid)
    environ = procfs.read_environ(pid) if found else {}
    hidden: tuple[str, ...] = ()
    if found and mapped:
        hidden = _hidden_argv(pid, mapped, found, argv)
        if environ is None:
            environ = startup.read_environ(pid, mapped, found)
    paths = cgroups.read_paths(pid)
    libraries = sorted({path.rpartition("/")[2] for path in _paths(mapped) if ".so" in path})
    start = workers.Start(pid, stat.ppid, argv, hidden)
    return ProcessFact(
        pid=pid,
        ns_pid=procfs.last_number(status.get("NSpid", ""), pid),
        ppid=stat.ppid,
        start_time=stat.start_time,
        command=stat.command,
        argv=argv,
        state=stat.state,
        uid=procfs.first_number(status.get("Uid", "")),
        age_s=stat.age_s,
        rss_bytes=stat.rss_bytes,
        fd_count=_fd_count(pid),
        executable=found.executable if found else procfs.read_link(pid, "exe"),
        is_python=found is not None,
        python_version=found.version if found else "",
        packages=packages.read_packages(pid, mapped, found, hidden or argv, environ or {}) if found and mapped else {},
        worker=workers.read_worker(start, is_python=found is not None, environ=environ),
        container=containers.read_container(pid, paths),
        frozen=cgroups.frozen(pid, paths),
        tracer_pid=procfs.first_number(status.get("TracerPid", "")),
        hooked_c_clients=tuple(
            dict.fromkeys(match.group(1) for name in libraries if (match := _C_CLIENTS.match(name)))
        ),
        libraries=tuple(libraries),
        handles_signals=handles_signals(status.get("SigCgt", "")),
    )


def read_again(earlier: ProcessFact) -> ProcessFact:
    """The same process a little later: only what changes while a program runs is read. Raises as `read_process`."""
    pid = earlier.pid
    stat = procfs.read_stat(pid)
    if (stat.start_time, stat.ppid) != (earlier.start_time, earlier.ppid) or procfs.read_argv(pid) != earlier.argv:
        return read_process(pid)
    return replace(
        earlier,
        state=stat.state,
        age_s=stat.age_s,
        rss_bytes=stat.rss_bytes,
        fd_count=_fd_count(pid),
        worker=workers.notified(pid, stat.ppid, earlier.worker),
        frozen=cgroups.frozen(pid, cgroups.read_paths(pid)),
        tracer_pid=procfs.first_number(procfs.read_status(pid).get("TracerPid", "")),
    )


def handles_signals(caught: str) -> bool:
    """Whether this mask (SigCgt) has more than SIGINT, the C library's own two (32 and 33), and those that only a fault
    in the process itself raises (faulthandler's)."""
    own = {signal.SIGINT, 32, 33, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    return bool(procfs.first_number(caught, base=16) & ~sum(1 << number - 1 for number in own))


def _interpreter(pid: int) -> tuple[regions.Regions | None, interpreter.Interpreter | None]:
    try:
        mapped: regions.Regions | None = regions.read(pid)
    except OSError:
        mapped = None
    try:
        return mapped, interpreter.find(pid, mapped)
    except OSError:
        return mapped, None


def _hidden_argv(
    pid: int, mapped: regions.Regions, found: interpreter.Interpreter, argv: tuple[str, ...]
) -> tuple[str, ...]:
    """The command line behind a title; () when argv is no title."""
    shown = command_line.read(argv)
    if not shown.title:
        return ()
    return startup.read_argv(pid, mapped, found, lambda words: command_line.read(words).program == shown.program)


def _paths(mapped: regions.Regions | None) -> list[str]:
    return list(dict.fromkeys(region.path for region in mapped.regions)) if mapped else []


def _fd_count(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def sleep_while_alive(pids: Iterable[int], seconds: float) -> None:
    """For so long, but no longer than until all of these processes have ended."""
    end = time.monotonic() + seconds
    poll, alive = select.poll(), set()
    with ExitStack() as opened:
        for pid in pids:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                opened.callback(os.close, pidfd)
                poll.register(pidfd, select.POLLIN)
                alive.add(pidfd)
        while alive and (left_s := end - time.monotonic()) > 0:
            for pidfd, _ in poll.poll(left_s * 1000):
                poll.unregister(pidfd)
                alive.discard(pidfd)


def still_same(process: ProcessFact) -> bool:
    """The very same process is still there, and not on its way out: not dead, not ending, no SIGKILL on its way."""
    try:
        stat = procfs.read_stat(process.pid)
        if stat.start_time != process.start_time or (stat.ending and process.state not in "ZX"):
            return False
        status = procfs.read_status(process.pid)
    except CannotInspect:
        return False
    return not any(procfs.first_number(status.get(field, ""), base=16) & _SIGKILL_BIT for field in ("ShdPnd", "SigPnd"))
