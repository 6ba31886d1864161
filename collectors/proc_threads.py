"""The threads of a process without BPF, from /proc/PID/task/TID/{stat,status,sched,syscall,wchan,stack}.

The same facts as threads.py. Since when a thread sleeps comes from `se.exec_start` in `sched`: the scheduler's clock
when the thread last left its CPU. That clock runs apart from CLOCK_MONOTONIC, on each CPU by its own amount (time that
a hypervisor stole is left out), so it is tied to it on every CPU concerned. Right within about 0.5 ms.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace

from stucktrace.collectors import permission, syscalls
from stucktrace.facts import Missing, ThreadFact
from stucktrace.facts.calls import CALLS

SOURCE = "/proc"
SLEEP_SOURCE = "/proc/PID/task/TID/sched"

# Fields of `stat`, counted from the state, which follows the name.
_STATE, _PROCESSOR = 0, 36
_READ_BYTES = 8192


@dataclass(frozen=True)
class _Raw:
    """One thread as read, before clocks are tied."""

    fact: ThreadFact
    cpu: int
    left_cpu_ns: int | None
    """Scheduler clock of its CPU."""
    read_ns: int
    """CLOCK_MONOTONIC."""
    call: tuple[int, ...] | None
    """Number and arguments."""


class _Refused:
    """Which files could not be read for lack of permission."""

    def __init__(self) -> None:
        self.files: set[str] = set()


def collect(pids: Collection[int]) -> tuple[dict[int, tuple[ThreadFact, ...]], tuple[Missing, ...]]:
    """pid -> its threads, by tid, and what could not be seen. A process that is gone is absent."""
    refused = _Refused()
    raw = {pid: threads for pid in pids if (threads := _read_process(pid, refused))}
    ties = _tie_clocks({t.cpu for threads in raw.values() for t in threads if t.left_cpu_ns is not None})
    facts = {pid: tuple(_finished(pid, thread, ties) for thread in threads) for pid, threads in raw.items()}
    missing: tuple[Missing, ...] = ()
    if "syscall" in refused.files:
        missing = (
            Missing(
                CALLS,
                "/proc/PID/task/TID/syscall may not be read",
                permission.to_read(next(iter(pids))),
            ),
        )
    return facts, missing


def _read_process(pid: int, refused: _Refused) -> list[_Raw]:
    try:
        directory = os.open(f"/proc/{pid}/task", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        found = (_read_thread(directory, tid, refused) for tid in sorted(map(int, os.listdir(directory))))
        return [thread for thread in found if thread is not None]
    except OSError:
        return []
    finally:
        os.close(directory)


def _read_thread(directory: int, tid: int, refused: _Refused) -> _Raw | None:
    """None when the thread ended meanwhile."""
    stat = _read(directory, f"{tid}/stat", refused)
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    if len(fields) <= _PROCESSOR:
        return None
    state = fields[_STATE].decode()
    asleep = state not in "RXZ"
    call_text = _read(directory, f"{tid}/syscall", refused) if asleep else b""
    if call_text.startswith(b"running"):
        # It woke between the two reads.
        state, asleep = "R", False
    sched = _colon_fields(_read(directory, f"{tid}/sched", refused))
    status = _colon_fields(_read(directory, f"{tid}/status", refused))
    wchan = _read(directory, f"{tid}/wchan", refused).decode(errors="replace") if asleep else ""
    voluntary, involuntary = status.get(b"voluntary_ctxt_switches"), status.get(b"nonvoluntary_ctxt_switches")
    fact = ThreadFact(
        tid=tid,
        ns_tid=int(status.get(b"NSpid", b"").split()[-1]) if status.get(b"NSpid") else tid,
        name=name.decode(errors="replace"),
        state=state,
        on_cpu_s=_cpu_s(sched, fields),
        switches=int(voluntary) + int(involuntary) if voluntary and involuntary else None,
        wchan="" if wchan == "0" else wchan,
        kernel_stack=_kernel_stack(directory, tid, refused) if state == "D" else (),
    )
    left_cpu_ns = _milliseconds(sched.get(b"se.exec_start")) if asleep else None
    return _Raw(fact, int(fields[_PROCESSOR]), left_cpu_ns, time.monotonic_ns(), _call(call_text))


def _finished(pid: int, raw: _Raw, ties: dict[int, int]) -> ThreadFact:
    """The fact with its sleep's age and its call decoded."""
    fact = raw.fact
    tie_ns = ties.get(raw.cpu)
    if raw.left_cpu_ns is not None and tie_ns is not None:
        blocked_s = max(0, raw.read_ns - tie_ns - raw.left_cpu_ns) / 1e9
        fact = replace(fact, blocked_s=blocked_s, blocked_since_source=SLEEP_SOURCE)
    if raw.call is not None:
        number, *args = raw.call
        fact = replace(fact, syscall=syscalls.decode(pid, number, tuple(args), _since(raw, fact), fact.wchan))
    return fact


def _since(raw: _Raw, fact: ThreadFact) -> int | None:
    """When its call began to wait; a stopped thread has slept since the stop only."""
    if fact.blocked_s is None or fact.state == "T":
        return None
    return raw.read_ns - int(fact.blocked_s * 1e9)


def _read(directory: int, path: str, refused: _Refused) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY, dir_fd=directory)
        try:
            return os.read(fd, _READ_BYTES)
        finally:
            os.close(fd)
    except PermissionError:
        refused.files.add(path.rpartition("/")[2])
    except OSError:
        pass
    return b""


def _colon_fields(text: bytes) -> dict[bytes, bytes]:
    """ "name : value" lines."""
    return {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in text.splitlines())}


def _milliseconds(text: bytes | None) -> int | None:
    """Nanoseconds from the scheduler's "123.456789" milliseconds."""
    if not text:
        return None
    whole, _, part = text.partition(b".")
    with suppress(ValueError):
        return int(whole) * 1_000_000 + int(part or b"0")
    return None


def _cpu_s(sched: dict[bytes, bytes], stat_fields: list[bytes]) -> float:
    exact_ns = _milliseconds(sched.get(b"se.sum_exec_runtime"))
    if exact_ns is not None:
        return exact_ns / 1e9
    return (int(stat_fields[11]) + int(stat_fields[12])) / os.sysconf("SC_CLK_TCK")


def _call(text: bytes) -> tuple[int, ...] | None:
    """(number, six arguments) from "nr arg0 ... arg5 sp pc"; None for "running" and for "-1 sp pc" (in no call)."""
    fields = text.split()
    if len(fields) < 9 or fields[0].startswith(b"-"):
        return None
    return (int(fields[0]), *(int(field, 16) for field in fields[1:7]))


def kernel_side(pid: int, tid: int, state: str) -> tuple[str, ...]:
    """Where in the kernel a thread sleeps, innermost first: one function; in D state all, if they may be read."""
    try:
        directory = os.open(f"/proc/{pid}/task", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return ()
    try:
        stack = _kernel_stack(directory, tid, _Refused()) if state == "D" else ()
        wchan = _read(directory, f"{tid}/wchan", _Refused()).decode(errors="replace")
        return stack or ((wchan,) if wchan not in ("", "0") else ())
    finally:
        os.close(directory)


def _kernel_stack(directory: int, tid: int, refused: _Refused) -> tuple[str, ...]:
    """Innermost first, from lines such as "[<0>] do_wait+0x64/0x100"."""
    lines = _read(directory, f"{tid}/stack", refused).decode(errors="replace").splitlines()
    return tuple(line.rpartition("] ")[2].partition("+")[0] for line in lines)


def _tie_clocks(cpus: set[int]) -> dict[int, int]:
    """CPU -> CLOCK_MONOTONIC minus its scheduler clock. A CPU that this process may not use is missing.

    A thread of our own sleeps for an instant on each CPU and reads when the scheduler says that it woke.
    """
    ties: dict[int, int] = {}

    def visit() -> None:
        path = f"/proc/self/task/{threading.get_native_id()}/sched"
        for cpu in sorted(cpus):
            with suppress(OSError):
                os.sched_setaffinity(0, {cpu})
                ties[cpu] = min(_tie(path) for _ in range(2))

    visitor = threading.Thread(target=visit, name="clock-tie", daemon=True)
    visitor.start()
    visitor.join()
    return ties


def _tie(own_sched: str) -> int:
    time.sleep(1e-6)
    woke_ns = time.monotonic_ns()
    with open(own_sched, "rb") as file:
        started_ns = _milliseconds(_colon_fields(file.read()).get(b"se.exec_start"))
    if started_ns is None:
        raise OSError("no se.exec_start")
    return woke_ns - started_ns
