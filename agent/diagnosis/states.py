"""States of the process itself: `stopped`, `uninterruptible`, `gil-held`, `spinning`.

Sources: the kernel's state letter, the cgroup freezer, the tracer, py-spy's GIL holder, and the waits probes' counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, loops, remedies
from stucktrace.diagnosis.futexes import waits_for_gil
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later, Now
from stucktrace.diagnosis.waits import POLL_CALLS, Wait, waits
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import CallActivity, Snapshot, ThreadFact

STORM_PER_CPU_S = 50_000.0
"""Calls in a second of CPU time. Below, 20 microseconds of Python lie between two of them: it computes something."""
EMPTY_SHARE = 0.99
SPINNING_SHARE = 0.25
"""A thread that uses less of the window's time on a CPU sleeps in between, and spins no more than a poll does."""
BUSY_SHARE = 0.04
TRACED_STOP_S = 1.0
"""A tracer that is alive lets a thread go on sooner, also on a machine where it has to wait for a CPU."""
NEVER_MOVES = frozenset({"sched_yield"})
"""Calls that achieve nothing by themselves, whatever they return."""


def stopped(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`stopped`: it was stopped, frozen or traced.

    The process does not run because somebody said so: SIGSTOP or SIGTSTP, its cgroup's freezer (docker pause), or a
    debugger that holds it.

    Proven: always. All its threads are in state T; or its cgroup is frozen; or all have been held in a tracing stop
    for 1 s and more.

    Now: `kill -CONT`, thaw the cgroup, or detach the debugger; somebody may have done it on purpose.

    Later: nothing of the program's own: find out who stops it.

    Not: a tracer that stops threads for an instant at each call, as strace does.

    Wrong: none is known.

    Try: stop something:

        sleep 60 & kill -STOP $!; stucktrace pid $!; kill -CONT $!
    """
    process, threads = snapshot.process, snapshot.threads
    alive = [thread for thread in threads if thread.state not in "ZX"]
    traced = [thread for thread in alive if thread.state == "t"]
    halted = [thread for thread in alive if thread.state == "T"]
    if process.frozen:
        text = "its cgroup is frozen (cgroup.freeze)"
        yield _stopped(snapshot, "its cgroup is frozen", Evidence("cgroup", "frozen", True, text), _thaw(snapshot))
    elif (halted and len(halted) == len(alive)) or (not alive and process.state == "T"):
        longest = max((thread.blocked_s for thread in halted if thread.blocked_s is not None), default=None)
        since = f" for {age(longest)}" if longest is not None else ""
        line = Evidence(
            "/proc/PID/stat", "state", "T", f"{count(len(halted), 'thread')} in state T, stopped by a signal{since}"
        )
        resume = Now(
            f"kill -CONT {process.pid}",
            "it goes on where it was stopped; somebody may have stopped it on purpose",
            "nothing",
        )
        yield _stopped(snapshot, f"it was stopped by a signal (SIGSTOP or SIGTSTP){since}", line, resume)
    elif traced and len(traced) + len(halted) == len(alive):
        aged = all((thread.blocked_s or 0) >= TRACED_STOP_S for thread in traced)
        still = snapshot.window_s >= TRACED_STOP_S and all(thread.slept_through for thread in traced)
        woke = any(thread.slept_through is False for thread in traced)
        if (aged or still) and not woke:
            who = f"pid {process.tracer_pid}" if process.tracer_pid else "a tracer"
            line = Evidence(
                "/proc/PID/status",
                "TracerPid",
                process.tracer_pid,
                f"traced by {who}; {count(len(traced), 'thread')} in state t",
            )
            detach = Now(f"end or detach the debugger ({who})", "whoever debugs it loses the session", "nothing")
            yield _stopped(snapshot, f"{who} holds it in a tracing stop", line, detach)


def _stopped(snapshot: Snapshot, why: str, line: Evidence, now: Now) -> Finding:
    process = snapshot.process
    return Finding(
        "stopped",
        PROVEN,
        f"the process does not run: {why}",
        evidence=(line,),
        now=(now,),
        tid=process.pid,
        chain=(f"pid {process.pid}", why),
    )


def _thaw(snapshot: Snapshot) -> Now:
    where = " (docker unpause, or its runtime's resume)" if snapshot.process.container else ""
    return Now(f"thaw its cgroup: echo 0 into its cgroup.freeze{where}", "all processes of the cgroup go on", "nothing")


def uninterruptible(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`uninterruptible`: the kernel does not let it go.

    A thread is in state D: it waits inside the kernel for a disk, a network file system, or for its vfork child to
    run a program. No signal ends that, not even SIGKILL.

    Proven: it has been so for 5 s.

    Likely: since when is not known, and it slept through a look of 1 s and more.

    Now: look at the device or mount behind it: dmesg, /proc/PID/mountinfo, /proc/pressure/io. Killing the process
    has no effect.

    Later: mount network file systems with timeouts (soft, timeo), and watch the disk; for a vfork, look at the
    child whose exec does not end.

    Not: a thread that was met in D and moved on (disks are slow for moments). A frozen cgroup (`stopped`).

    Wrong: a device that answers after longer than 5 s is told meanwhile.

    Try: a vfork whose child runs no program, in a clone:

        .venv/bin/python tests/targets/stuck_states.py vforks & sleep 7; .venv/bin/stucktrace pid $!
        pkill -KILL -P $!
    """
    for thread in snapshot.threads:
        if thread.state != "D" or thread.slept_through is False or snapshot.process.frozen:
            continue
        long = thread.blocked_s is not None and thread.blocked_s >= budgets.owed_s
        unknown_but_still = thread.blocked_s is None and thread.slept_through is True and snapshot.window_s >= 1
        if long or unknown_but_still:
            yield _uninterruptible(snapshot, thread, PROVEN if long else LIKELY)


def _uninterruptible(snapshot: Snapshot, thread: ThreadFact, confidence: str) -> Finding:
    name, call = evidence.who(snapshot, thread.tid), evidence.call_text(thread)
    fd = thread.syscall.fd if thread.syscall else None
    file = f" ({snapshot.fds[fd]})" if fd is not None and fd in snapshot.fds else ""
    kernel = thread.kernel_stack[0] if thread.kernel_stack else thread.wchan
    inside = f", in the kernel's {kernel}" if kernel else ""
    since = f" for {age(thread.blocked_s)}" if thread.blocked_s is not None else ""
    lines = [evidence.call_line(snapshot, thread)]
    if kernel:
        deep = " < ".join(thread.kernel_stack[:6]) or kernel
        lines.append(Evidence(evidence.thread_source(snapshot), "kernel stack", kernel, f"kernel stack: {deep}"))
    lines.extend(evidence.frame_line(snapshot.frames(thread.tid), None))
    if thread.syscall is not None and thread.syscall.name in ("vfork", "clone", "clone3"):
        why = "its child has not executed its program yet"
        later = Later(
            "look at the child: its exec does not come to an end", "a vfork holds its parent until the child's exec"
        )
    else:
        why = "no signal, not even SIGKILL, ends that before the device or file system answers"
        later = Later(
            "mount network file systems with timeouts (soft, timeo), and watch the disk",
            "the kernel waits as long as the device does",
        )
    return Finding(
        "uninterruptible",
        confidence,
        f"{name} is in uninterruptible sleep in {call}{file}{since}{inside}: {why}",
        evidence=tuple(lines),
        now=(
            Now(
                f"look at the device or mount behind it: dmesg, /proc/{snapshot.process.pid}/mountinfo, "
                "/proc/pressure/io",
                "",
                "",
            ),
        ),
        later=(later,),
        tid=thread.tid,
        fd=fd,
        chain=(name, f"{call}{file}", kernel or "the kernel"),
    )


def gil_held(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`gil-held`: the GIL's holder sits in a call.

    C code that was called with the GIL sleeps in the kernel, so no other Python thread can run; heartbeats stop
    too.

    Proven: the GIL's holder has slept in one system call for 5 s, and at least one other thread waits for the GIL.

    Likely: it has for 2 s. Or every Python thread waits for the GIL and none holds it: its holder ended, or was
    left behind by a fork.

    Now: restart the process; the report has the command (SIGKILL for workers: a handler in Python could not run).

    Later: let the extension release the GIL around the call (`Py_BEGIN_ALLOW_THREADS`; `ctypes.CDLL` instead of
    `PyDLL`); do not fork from C while Python threads run.

    Not: a holder on the CPU: that is `working`. A process where nobody waits for the GIL.

    Wrong: none is known where it is proven: the call may end, and until it does nothing else runs.

    Try: a sleep in C that keeps the GIL:

        python3 -c "import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(1,)).start()
        ctypes.PyDLL(None).sleep(60)" &
        sleep 7; stucktrace pid $!
    """
    python = snapshot.python
    if python is None or not python.gil_readable:
        return
    known = {wait.thread.tid: wait for wait in waits(snapshot)}
    holder = next((thread.tid for thread in python.threads if thread.owns_gil), None)
    waiting = [
        wait for tid, wait in known.items() if tid != holder and snapshot.python_thread(tid) and waits_for_gil(wait)
    ]
    if not any(_on_gil_word(wait) for wait in waiting):
        # Short polls of a C library look like it, and py-spy may name the last holder of a GIL that is free.
        return
    if holder is not None:
        wait = known.get(holder)
        thread = snapshot.thread(holder)
        if wait is None or thread is None or thread.state not in "SD" or thread.syscall is None:
            return
        slept_s = thread.blocked_s
        if slept_s is None or slept_s < 2 or thread.slept_through is False or waits_for_gil(wait):
            return
        yield _gil_holder(snapshot, budgets, wait, waiting, slept_s)
    elif len(waiting) == len(python.threads) and _still(snapshot):
        yield _gil_lost(snapshot, waiting)


def _on_gil_word(wait: Wait) -> bool:
    return wait.lock is not None and wait.lock.kind == "gil"


def _still(snapshot: Snapshot) -> bool:
    """Two looks, and next to no CPU time between them: nobody got the GIL in passing."""
    used_s = [thread.cpu_s_in_window for thread in snapshot.threads]
    return snapshot.window_s >= 0.2 and all(used is not None and used < snapshot.window_s / 20 for used in used_s)


def _gil_holder(snapshot: Snapshot, budgets: Budgets, wait: Wait, waiting: list[Wait], slept_s: float) -> Finding:
    name, call = evidence.who(snapshot, wait.thread.tid), evidence.call_text(wait.thread)
    certain = slept_s >= budgets.owed_s
    frame = wait.frames[0] if wait.frames else None
    under = f" under {evidence.where(frame)}" if frame else ""
    return Finding(
        "gil-held",
        PROVEN if certain else LIKELY,
        f"{name} holds the GIL and has slept in {call}{under} for {age(slept_s)}: no other Python thread can run "
        f"({count(len(waiting), 'thread waits', 'threads wait')} for it)",
        evidence=(
            Evidence("py-spy", "owns_gil", wait.thread.tid, f"{name} holds the GIL"),
            evidence.call_line(snapshot, wait.thread, slept_s),
            *evidence.frame_line(wait.frames, 0),
            *(evidence.call_line(snapshot, other.thread) for other in waiting[:3]),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "let the extension release the GIL around the call (Py_BEGIN_ALLOW_THREADS; ctypes.CDLL instead "
                "of PyDLL)",
                "a call that blocks with the GIL stops all threads of the process, heartbeats too",
            ),
        ),
        tid=wait.thread.tid,
        fd=wait.thread.syscall.fd if wait.thread.syscall else None,
        chain=(count(len(waiting), "thread"), "the GIL", f"held by {name}", call),
        frame=0 if wait.frames else None,
        explains=tuple(other.thread.tid for other in waiting),
    )


def _gil_lost(snapshot: Snapshot, waiting: list[Wait]) -> Finding:
    names = listing([evidence.who(snapshot, wait.thread.tid) for wait in waiting])
    first = min(waiting, key=lambda wait: wait.thread.tid)
    return Finding(
        "gil-held",
        LIKELY,
        f"every Python thread waits for the GIL ({names}), and no thread holds it: its holder ended, or was left "
        "behind by a fork",
        evidence=tuple(evidence.call_line(snapshot, wait.thread) for wait in waiting[:5]),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "do not fork from C while Python threads run", "the child inherits a GIL whose holder was not copied"
            ),
        ),
        tid=first.thread.tid,
        lock=first.lock.address if first.lock else None,
        chain=(names, "the GIL", "held by nobody here"),
        explains=tuple(wait.thread.tid for wait in waiting if wait is not first),
    )


def spinning(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`spinning`: it burns CPU in system calls that move nothing.

    A loop asks the kernel again and again and gets nothing done: sched_yield, polls with a timeout of 0, reads that
    would block.

    Likely: always, for a loop that yields between small steps of computation cannot be told from it by its calls.
    The thread uses a quarter of the look's time on the CPU (less where it was met waiting for one), makes over
    50,000 calls in a second of that, and 99 % of them move nothing.

    Now: restart the process; the report has the command.

    Later: wait in a blocking call with a timeout instead of asking again at once.

    Not: CPU time alone (`working`). Any thread that moves bytes. Contended locks and the GIL. An event loop whose
    callbacks are always ready.

    Wrong: a busy-wait on purpose, as some benchmarks and drivers do.

    Try: a loop that only yields (engine core: the calls are counted by BPF):

        python3 -c "import os
        while True:
            os.sched_yield()" &
        sleep 2; stucktrace pid $!; kill $!
    """
    if snapshot.window_s < 0.1:
        return
    for thread in snapshot.threads:
        calls = list(snapshot.activity_of(thread.tid))
        total = sum(entry.returns for entry in calls)
        empty = sum(
            entry.returns
            if entry.call in NEVER_MOVES or _reports_the_end_only(snapshot, entry)
            else min(entry.empty, entry.returns)
            for entry in calls
        )
        used_s = snapshot.window_s if thread.cpu_s_in_window is None else thread.cpu_s_in_window
        # A thread that is runnable all the time may get little of a busy machine.
        share = BUSY_SHARE if thread.state == "R" else SPINNING_SHARE
        if (
            used_s < snapshot.window_s * share
            or total < STORM_PER_CPU_S * used_s
            or empty < EMPTY_SHARE * total
            or any(entry.moved_bytes for entry in calls)
        ):
            continue
        most = max(calls, key=lambda entry: entry.returns)
        if most.call.startswith("futex"):
            # Contended locks and the GIL look like this in a process that works, also where it is met running.
            continue
        if all(entry.call in POLL_CALLS for entry in calls) and loops.turns_a_loop(snapshot, thread.tid):
            # A loop whose callbacks are always ready polls between them without waiting.
            continue
        yield _spinning(snapshot, thread, most, total)


def _reports_the_end_only(snapshot: Snapshot, entry: CallActivity) -> bool:
    """An epoll set with the read end of a pipe that nobody can write to any more: it returns at once, for ever."""
    epoll = snapshot.epoll(entry.fd) if entry.call.startswith("epoll") else None
    pipes = [snapshot.pipe(watch.fd) for watch in epoll.watches if watch.present] if epoll else []
    return any(pipe and pipe.end == "read" and not pipe.writers for pipe in pipes)


def _spinning(snapshot: Snapshot, thread: ThreadFact, most: CallActivity, total: int) -> Finding:
    name, rate = evidence.who(snapshot, thread.tid), total / snapshot.window_s
    frames = snapshot.frames(thread.tid)
    under = f" under {evidence.where(frames[0])}" if frames else ""
    on = f" on fd {most.fd}" if most.fd is not None and most.fd >= 0 else ""
    used = thread.cpu_s_in_window
    lines = [
        Evidence(
            "waits", "returns", total, f"{name}: {total} calls returned in {age(snapshot.window_s)} and moved nothing"
        )
    ]
    lines.append(Evidence("waits", most.call, most.returns, f"{most.call}{on} alone returned {most.returns} times"))
    if used is not None:
        lines.append(
            Evidence(
                evidence.thread_source(snapshot),
                "cpu_s",
                used,
                f"it used {used:.2f} s of CPU in {snapshot.window_s:.2f} s",
                "s",
            )
        )
    lines.extend(evidence.frame_line(frames, 0))
    return Finding(
        "spinning",
        LIKELY,
        f"{name} spins{under}: {most.call}{on} returns {rate:.0f} times a second with nothing done",
        evidence=tuple(lines),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "wait with a timeout in a blocking call instead of asking again at once",
                "the loop takes a CPU and moves nothing",
            ),
        ),
        tid=thread.tid,
        fd=most.fd if most.fd is not None and most.fd >= 0 else None,
        chain=(name, f"{most.call}{on}", "returns at once, empty"),
        frame=0 if frames else None,
    )
