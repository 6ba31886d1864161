"""What every thread of a process is inside right now, and since when: name, state, system call, sleep, CPU time.

From the iterator over task_struct (bpf/threads.bpf.c), which also knows when a thread went to sleep before we came;
where BPF cannot be used, from /proc (proc_threads.py) with the same facts. Nothing is stopped or changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from stucktrace.collectors import proc_threads, procfs, syscalls
from stucktrace.collectors.events import ThreadRecord, ThreadStackRecord, split
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.facts import Missing, ThreadFact

PROGRAM = "threads"
SOURCE = "iter/task"

# task->__state as include/linux/sched.h has it: bit n is letter n + 1; what lies above is not reported.
_LETTERS = "RSDTtXZPI"
_REPORTED = 0x7F
_IDLE = 0x402
_RTLOCK_WAIT_OR_FROZEN = 0x1000 | 0x8000
# The result that a stop leaves in a call which it interrupted: -EINTR, -ERESTARTSYS ... -ERESTART_RESTARTBLOCK.
_INTERRUPTED = {-4, -512, -513, -514, -516}
# Functions of the scheduler, which every sleep begins with; what called them is where the thread waits.
_SCHEDULER = ("__schedule", "schedule", "io_schedule", "preempt_schedule", "__cond_resched", "__switch_to")


@dataclass(frozen=True)
class Look:
    """One look at the threads of some processes."""

    facts: Mapping[int, tuple[ThreadFact, ...]]
    """pid -> its threads, by tid; a process that is gone is absent."""
    source: str
    missing: tuple[Missing, ...] = ()
    kernel_ids: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """(pid, tid) in the initial namespace of each tid, for hooks that know only those. With BPF only, and
    empty where the iterator cannot run and the tool's PID namespace is not the initial one."""

    @property
    def kernel_pids(self) -> dict[int, int]:
        """pid -> in the initial namespace. With BPF only."""
        return {pid: self.kernel_ids[facts[0].tid][0] for pid, facts in self.facts.items() if self.kernel_ids}


def collect(pids: Collection[int], kernel: Kernel | None) -> dict[int, tuple[ThreadFact, ...]]:
    """The threads of each process; a process that is gone is absent."""
    return dict(look(pids, kernel).facts)


def look(pids: Collection[int], kernel: Kernel | None) -> Look:
    """As `collect`, with what could not be seen."""
    if kernel is not None and kernel.iterates:
        try:
            found = _from_kernel(pids, kernel)
        except BpfError as error:
            refused = Missing("threads through BPF", str(error), "none needed: /proc was read instead")
            kernel.hooks[PROGRAM] = proc_threads.SOURCE
            facts, missing = proc_threads.collect(pids)
            return Look(facts, proc_threads.SOURCE, (refused, *missing), _own_ids(facts))
        kernel.hooks[PROGRAM] = SOURCE
        return found
    facts, missing = proc_threads.collect(pids)
    if kernel is None:
        return Look(facts, proc_threads.SOURCE, missing)
    kernel.hooks[PROGRAM] = proc_threads.SOURCE
    return Look(facts, proc_threads.SOURCE, missing, _own_ids(facts))


def _own_ids(facts: Mapping[int, tuple[ThreadFact, ...]]) -> dict[int, tuple[int, int]]:
    """`Look.kernel_ids` without BPF: known only where the tool's ids are those of the initial namespace."""
    if procfs.own_pids():
        return {}
    return {thread.tid: (pid, thread.tid) for pid, threads in facts.items() for thread in threads}


def compare(first: tuple[ThreadFact, ...], second: tuple[ThreadFact, ...]) -> tuple[ThreadFact, ...]:
    """The second look, with what happened to each thread since the first. New threads have nothing to compare."""
    earlier = {thread.tid: thread for thread in first}
    return tuple(_compared(earlier[thread.tid], thread) if thread.tid in earlier else thread for thread in second)


def _compared(first: ThreadFact, second: ThreadFact) -> ThreadFact:
    cpu_s = slept = None
    if first.on_cpu_s is not None and second.on_cpu_s is not None:
        cpu_s = max(0.0, second.on_cpu_s - first.on_cpu_s)
    if first.switches is not None and second.switches is not None:
        asleep = first.state not in "R" and second.state not in "R"
        slept = asleep and first.switches == second.switches
    return replace(second, cpu_s_in_window=cpu_s, slept_through=slept)


def _from_kernel(pids: Collection[int], kernel: Kernel) -> Look:
    wanted = frozenset(pids)
    if len(wanted) == 1:
        data = kernel.iterate(PROGRAM, next(iter(wanted)))
    else:
        kernel.follow(wanted)
        data = kernel.iterate(PROGRAM, None)
    records: list[ThreadRecord] = []
    stacks: dict[int, tuple[str, ...]] = {}
    for kind, offset in split(data):
        if kind == ThreadRecord.KIND:
            records.append(ThreadRecord.from_buffer_copy(data, offset))
        elif kind == ThreadStackRecord.KIND:
            stack = ThreadStackRecord.from_buffer_copy(data, offset)
            stacks[stack.tid] = tuple(
                stack.symbols[index].value.decode(errors="replace")
                for index in range(min(stack.depth, len(stack.symbols)))
            )
    # The scheduler's clock and CLOCK_MONOTONIC drift apart by NTP's corrections; the reader's own wake-up, the moment
    # before the first record, ties them. Later records only add the time since then, so the least difference is it.
    clocks_ns = min((record.now_ns - record.reader_arrival_ns for record in records), default=0)
    found: dict[int, list[ThreadFact]] = {}
    kernel_ids = {}
    for record in records:
        if record.pid not in wanted:
            continue
        found.setdefault(record.pid, []).append(_fact(record, stacks.get(record.tid, ()), clocks_ns))
        kernel_ids[record.tid] = (record.kernel_pid, record.kernel_tid)
    facts = {pid: tuple(sorted(threads, key=lambda thread: thread.tid)) for pid, threads in found.items()}
    return Look(facts, SOURCE, (), kernel_ids)


def _fact(record: ThreadRecord, stack: tuple[str, ...], clocks_ns: int) -> ThreadFact:
    state = _letter(record.state, record.exit_state)
    asleep = state not in "RXZ"
    if asleep and not stack:
        # Kernels before 5.13 cannot name functions to the iterator.
        stack = proc_threads.kernel_side(record.pid, record.tid, state)
    slept_at_ns = min(record.now_ns, record.slept_at_ns + clocks_ns)
    wchan = next((symbol for symbol in stack if not symbol.startswith(_SCHEDULER)), "")
    syscall = None
    if asleep and record.syscall >= 0 and not (state == "T" and record.result not in _INTERRUPTED):
        # A stopped thread has slept since the stop, not since its call began.
        since_ns = slept_at_ns if state != "T" else None
        syscall = syscalls.decode(record.pid, record.syscall, tuple(record.args), since_ns, wchan)
    return ThreadFact(
        tid=record.tid,
        ns_tid=record.ns_tid,
        name=record.name.decode(errors="replace"),
        state=state,
        syscall=syscall,
        on_cpu_s=record.cpu_ns / 1e9,
        blocked_s=(record.now_ns - slept_at_ns) / 1e9 if asleep else None,
        blocked_since_source=SOURCE if asleep else "",
        switches=record.switches_voluntary + record.switches_involuntary,
        wchan=wchan,
        kernel_stack=stack if state == "D" else (),
    )


def _letter(state: int, exit_state: int) -> str:
    if state == _IDLE:
        return "I"
    if state & _RTLOCK_WAIT_OR_FROZEN:
        return "D"
    return _LETTERS[((state | exit_state) & _REPORTED).bit_length()]
