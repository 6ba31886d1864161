"""Native call stacks of sleeping threads, read without stopping them.

Registers: the kernel's own copy (bpf/threads.bpf.c), which has all of them; without BPF the stack pointer and the
program counter from /proc/PID/task/TID/syscall, which is enough as long as the unwind tables need no other. A thread's
stack counts only if the thread slept from before the first read until after the last: its switch count says so.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors import elf, evaluations, interpreter, memory, native_merge, regions, unwind
from stucktrace.collectors.events import RegistersRecord, ThreadRecord, split
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.collectors.symbols import Symbols
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, NativeStack, Snapshot

SOURCE_BPF = "unwound, registers by iter/task"
SOURCE_PROC = "unwound, registers by /proc"
DEADLINE_S = 2.0
ATTEMPTS = 5
PAUSE_S = 0.02
"""Between attempts: a thread that polls is asleep most of the time."""
_USER_CODE_64 = 0x33
"""The code segment of a 64-bit program on x86-64; another one has other system calls and registers."""


@dataclass(frozen=True)
class _Asleep:
    registers: Mapping[int, int]
    counter: int
    switches: int


@dataclass(frozen=True)
class NativeStacks:
    stacks: tuple[NativeStack, ...]
    """Without threads that ran meanwhile, or do not sleep."""
    source: str


def collect(
    snapshot: Snapshot, tids: Collection[int], kernel: Kernel | None, deadline_s: float = DEADLINE_S
) -> NativeStacks:
    """Raises CollectorError where the process's memory cannot be read."""
    pid, ends = snapshot.process.pid, time.monotonic() + deadline_s
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped) if snapshot.python else None
        machine = _machine(pid, mapped)
        if machine is None:
            raise CollectorError("native stacks", "its architecture is not known here", "")
        target = _Target(snapshot, mapped, found, machine, unwind.Unwinder(pid, mapped, ends))
        seen, source = _walk(target, tids, kernel, ends - deadline_s / 2)
    except (FileNotFoundError, ProcessLookupError):
        raise CollectorError("native stacks", "the process ended", "") from None
    except OSError as error:
        raise CollectorError(
            "native stacks", f"its memory cannot be read: {error.strerror}", memory.permission_remedy()
        ) from None
    symbols, library = Symbols(pid), found.library if found else ""
    stacks = (
        native_merge.merged(
            tid,
            [_frame(symbols, frame) for frame in each.stack.frames],
            each.stack.ended,
            python_frames=len(snapshot.frames(tid)),
            calls=each.calls,
            interpreter=library,
        )
        for tid, each in seen.items()
    )
    return NativeStacks(tuple(stacks), source)


@dataclass(frozen=True)
class _Target:
    snapshot: Snapshot
    mapped: regions.Regions
    found: Interpreter | None
    machine: unwind.Machine
    unwinder: unwind.Unwinder


@dataclass(frozen=True)
class _Seen:
    """A whole stack of a thread that slept all the while."""

    stack: unwind.Stack
    calls: tuple[int, ...] | None
    """Python frames of each call of the evaluation function, where they are those of the snapshot."""


def _walk(
    target: _Target, tids: Collection[int], kernel: Kernel | None, retry_until: float
) -> tuple[dict[int, _Seen], str]:
    """All at once first; then each that moved alone, when the files' tables are there and a walk takes no time."""
    seen: dict[int, _Seen] = {}
    parts, source = [tuple(tids)], ""
    for attempt in range(ATTEMPTS):
        for part in parts:
            found, source = _walk_once(target, part, kernel)
            seen.update(found)
        parts = [(tid,) for tid in tids if tid not in seen]
        if not parts or attempt == ATTEMPTS - 1 or time.monotonic() > retry_until:
            break
        time.sleep(PAUSE_S)
    return seen, source


def _walk_once(target: _Target, tids: Collection[int], kernel: Kernel | None) -> tuple[dict[int, _Seen], str]:
    pid, machine, unwinder = target.snapshot.process.pid, target.machine, target.unwinder
    unwinder.forget()
    before, source = _registers(pid, tids, kernel, machine)
    stacks = {tid: unwinder.unwind(machine, state.registers, state.counter) for tid, state in before.items()}
    calls = _calls(target.mapped, target.found, target.snapshot, stacks)
    after, _ = _registers(pid, tids, kernel, machine)
    seen = {}
    for tid, stack in stacks.items():
        switches = before[tid].switches
        if stack.frames and tid in after and after[tid].switches == switches:
            # Its Python frames were read before: they are the same if it has not run since.
            known = target.snapshot.thread(tid)
            same = known is not None and known.switches == switches
            seen[tid] = _Seen(stack, calls.get(tid) if same else None)
    return seen, source


def _calls(
    mapped: regions.Regions, found: Interpreter | None, snapshot: Snapshot, tids: Collection[int]
) -> dict[int, tuple[int, ...]]:
    threads = [thread for tid in tids if (thread := snapshot.python_thread(tid)) is not None]
    idents = {thread.ident: thread.tid for thread in threads if thread.ident}
    try:
        return evaluations.calls(snapshot.process.pid, mapped, found, threads, idents)
    except (OSError, struct.error):
        # What it needs of the interpreter's memory made no sense: then only the innermost frames are placed.
        return {}


def _machine(pid: int, mapped: regions.Regions) -> unwind.Machine | None:
    """The architecture, as the first mapped 64-bit program file tells it."""
    for region in mapped.regions:
        if region.offset == 0 and region.path.startswith("/"):
            module = elf.read(pid, region)
            if module is not None:
                return unwind.MACHINES.get(module.machine)
    return None


def _registers(
    pid: int, tids: Collection[int], kernel: Kernel | None, machine: unwind.Machine
) -> tuple[dict[int, _Asleep], str]:
    if kernel is not None and kernel.iterates:
        try:
            return _from_kernel(pid, tids, kernel, machine), SOURCE_BPF
        except BpfError:
            pass
    found = {tid: _from_proc(pid, tid, machine) for tid in tids}
    return {tid: state for tid, state in found.items() if state is not None}, SOURCE_PROC


def _from_kernel(pid: int, tids: Collection[int], kernel: Kernel, machine: unwind.Machine) -> dict[int, _Asleep]:
    with kernel.with_registers(pid):
        data = kernel.iterate("threads", pid)
    switches: dict[int, int] = {}
    found: dict[int, _Asleep] = {}
    for kind, offset in split(data):
        if kind == ThreadRecord.KIND:
            thread = ThreadRecord.from_buffer_copy(data, offset)
            if thread.pid == pid and thread.tid in tids:
                switches[thread.tid] = thread.switches_voluntary + thread.switches_involuntary
        elif kind == RegistersRecord.KIND:
            record = RegistersRecord.from_buffer_copy(data, offset)
            words = tuple(record.words)
            foreign = machine.program_counter == 16 and words[17] != _USER_CODE_64
            if record.tid in switches and not foreign:
                named = zip(machine.saved, words, strict=False)
                known = {number: word for number, word in named if number >= 0}
                found[record.tid] = _Asleep(known, words[machine.program_counter], switches[record.tid])
    return found


def _from_proc(pid: int, tid: int, machine: unwind.Machine) -> _Asleep | None:
    """Source: /proc/PID/task/TID/syscall ("202 0x... 0x7ffc.. 0x7f.."; "running") and status."""
    task = Path(f"/proc/{pid}/task/{tid}")
    try:
        words = (task / "syscall").read_text(encoding="ascii").split()
        lines = (task / "status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if len(words) < 3:
        return None
    stack, counter = int(words[-2], 16), int(words[-1], 16)
    switches = sum(int(line.split()[1]) for line in lines if "ctxt_switches:" in line)
    return _Asleep({machine.stack_pointer: stack}, counter, switches) if counter else None


def _frame(symbols: Symbols, frame: unwind.Frame) -> Frame:
    if frame.module is None:
        return Frame(f"{frame.address:#x}", "generated code", 0, native=True)
    name = symbols.name(frame.module, frame.address)
    return Frame(
        name or f"{short(frame.module.path)}+{frame.address - frame.module.bias:#x}", frame.module.path, 0, native=True
    )


def short(path: str) -> str:
    return path.removesuffix(" (deleted)").rpartition("/")[2]
