"""What one thread does when nothing says that it is stuck: idle, working, waiting, or not to be told.

First the kernel's word (it runs, it moved bytes), then the frames' (what the wait is for), then the call's alone.
Ages decide here only whether a lock without a known holder is still `waiting`: past the budget it is `inconclusive`.
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.diagnosis import evidence, file_locks
from stucktrace.diagnosis.futexes import acquires, in_futex, waits_for_gil
from stucktrace.diagnosis.graph import (
    CHILD_CALLS,
    EXCLUSIVE_KINDS,
    FILE_LOCK_CALLS,
    SHARED_SEMAPHORES,
    SLEEP_CALLS,
    waited_child,
)
from stucktrace.diagnosis.lock_words import owner_line, title
from stucktrace.diagnosis.model import Budgets, Evidence, Later
from stucktrace.diagnosis.process_locks import holder
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, listing, process
from stucktrace.facts import PipeFact, PoolFact, Snapshot, SocketFact, ThreadFact
from stucktrace.facts.calls import CALLS

IDLE, WORKING, WAITING, INCONCLUSIVE = "idle", "working", "waiting", "inconclusive"
JOINING = "joining"
"""Waits for another thread, task or child of its own: as healthy as that one is."""

_POLL_CALLS = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "io_uring_enter"}
)
_SIGNAL_CALLS = frozenset({"rt_sigtimedwait", "rt_sigsuspend", "pause", "sigsuspend"})
_ACCEPT_CALLS = frozenset({"accept", "accept4"})
_PEER = frozenset({Purpose.REQUEST, Purpose.OWED, Purpose.CONNECT, Purpose.SEND, Purpose.RESOLVE, Purpose.INBOUND})
_OF_THE_STACK = frozenset({Purpose.SLEEP, Purpose.CONDITION, Purpose.JOIN, Purpose.RETRY})
"""Waits that are what they are whatever call they are made of."""
_SERVERS = frozenset({"server", "python"})
"""Families whose waits for work are for connections to come, or for other threads."""
_BUSY_SHARE = 0.25


@dataclass(frozen=True)
class Status:
    """One thread's share of the verdict."""

    thread: ThreadFact
    kind: str
    reason: str
    """The same for threads that do the same: no ages, no tids."""
    wait: Wait | None = None
    behind: tuple[str, ...] = ()
    """The chain from its call on."""
    lines: tuple[Evidence, ...] = ()
    later: tuple[Later, ...] = ()


_OF_C = frozenset({"pthread-mutex", "robust-mutex", "pi-mutex", "rwlock"})
"""What no thread waits for when it is idle."""


def status_of(snapshot: Snapshot, budgets: Budgets, thread: ThreadFact, wait: Wait | None) -> Status:
    if _runs(snapshot, thread):
        return Status(thread, WORKING, "runs on the CPU", wait)
    if wait is None or thread.syscall is None:
        frames = snapshot.frames(thread.tid)
        if not frames and thread.syscall is None:
            return Status(thread, INCONCLUSIVE, "asleep in a call that could not be read", wait)
        if wait is None:
            return Status(thread, IDLE, f"sleeps in {evidence.call_text(thread)}")
    if thread.state == "D":
        return Status(thread, WORKING, "in the kernel, for a disk or a file system", wait)
    if thread.state in "Tt":
        return Status(thread, WAITING, "stopped for a moment by a tracer or a signal", wait)
    if waits_for_gil(wait):
        return Status(thread, WORKING, "waits for its turn at the GIL", wait)
    if thread.syscall is None and any(missing.what == CALLS for missing in snapshot.seen.missing):
        return _by_stack(snapshot, budgets, wait)
    return _by_purpose(snapshot, budgets, wait)


def _by_stack(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    """Its call may not be read, and so neither the fd nor the lock that it waits for: the stack alone makes healthy
    only what would be so whatever those are."""
    purpose, reason, futex = wait.reading.purpose, wait.reading.reason, wait.thread.wchan.startswith("futex")
    if purpose in _OF_THE_STACK or (purpose is Purpose.WORK and (futex or wait.reading.family in _SERVERS)):
        return _by_purpose(snapshot, budgets, wait)
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    if purpose in (Purpose.WORK, Purpose.SUBSCRIPTION):
        why = f"{reason or 'waits for work'}, and whether its connection lives could not be read"
    elif (purpose in _PEER or purpose is Purpose.LOCK) and wait.age_s is not None and wait.age_s < limit_s:
        return Status(wait.thread, WAITING, reason or "waits for an answer", wait)
    elif purpose in _PEER or purpose is Purpose.LOCK:
        why = f"{reason or 'waits'} past the budget of {age(limit_s)}, and what for could not be read"
    else:
        frames = wait.frames[wait.reading.frame or 0 :] or wait.frames
        why = f"asleep under {evidence.where(frames[0])}, in a call that could not be read"
    later = tuple(Later(missing.remedy, missing.what) for missing in snapshot.seen.missing[:3] if missing.remedy)
    return Status(wait.thread, INCONCLUSIVE, why, wait, later=later)


def _runs(snapshot: Snapshot, thread: ThreadFact) -> bool:
    """`working`: bytes or instructions move.

    A thread runs on a CPU, or has used a quarter of the look's time there; or bytes moved on what it waits for; or
    it waits for its turn at the GIL, or for a disk, for less than the budget.

    Likely: always: that it gets anywhere is not looked at.

    Not: system calls in a storm that move nothing (`spinning`).

    Wrong: a loop in Python that never ends is `working` for ever.

    Try: a loop:

        python3 -c "while True: pass" & sleep 1; stucktrace pid $!; kill $!
    """
    used_s = thread.cpu_s_in_window
    busy = used_s is not None and snapshot.window_s > 0 and used_s >= _BUSY_SHARE * snapshot.window_s
    return thread.state == "R" or busy


def _by_purpose(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    """`idle`: parked where its role waits for work.

    Every thread waits for what brings it work: a connection, a message, a task, a timer, a signal, a notification.
    That is a good answer; a verdict never calls an idle worker stuck.

    Likely: always. The stack says what the wait is for, or else the system call does, and no rule found a reason
    why it could not end. "Nothing here can prove more" stands where neither tells.

    Not: a wait for something that is owed (`waiting`, or a code of its own once it is overdue). A process whose
    stacks and calls could not be read (`inconclusive`).

    Wrong: a worker that lost its consumer at the broker looks the same from inside (`consumer-lost`): a note says
    so where there is a sign of it, and `--broker` asks.

    Try: any idle process:

        sleep 60 & stucktrace pid $!
    """
    thread, purpose, reason = wait.thread, wait.reading.purpose, wait.reading.reason
    if lent := next((pool for pool in snapshot.pools if pool.kind == "connections" and _awaited(pool, thread)), None):
        return Status(thread, WAITING, f"waits for a connection of {lent.name}, whose connections are out", wait)
    if purpose in (Purpose.WORK, Purpose.SUBSCRIPTION):
        return Status(thread, IDLE, reason or "waits for work", wait, _behind(wait))
    if purpose is Purpose.SLEEP:
        return Status(thread, IDLE, reason or "sleeps", wait)
    if purpose is Purpose.RETRY:
        return Status(thread, WAITING, reason or "sleeps before it tries again", wait)
    if purpose is Purpose.LOCK and in_futex(thread) and not acquires(wait):
        return _semaphore(snapshot, budgets, wait)
    if purpose is Purpose.CONDITION:
        return Status(thread, IDLE, reason or "waits to be notified", wait)
    if purpose is Purpose.JOIN:
        return _joining(snapshot, wait, reason or "waits for another to finish")
    if in_futex(thread):
        return _futex(snapshot, budgets, wait)
    if thread.syscall is not None and thread.syscall.name in FILE_LOCK_CALLS:
        return _file_lock(snapshot, budgets, wait)
    if _moved(snapshot, wait):
        return Status(thread, WORKING, f"{reason or 'moves bytes'} (bytes move)", wait, _behind(wait))
    if purpose in _PEER:
        return _peer(snapshot, budgets, wait, reason)
    return _by_call(snapshot, budgets, wait)


def _awaited(pool: PoolFact, thread: ThreadFact) -> bool:
    return pool.complete and any(each.tid == thread.tid for each in pool.awaited)


def _moved(snapshot: Snapshot, wait: Wait) -> bool:
    """Bytes moved in the window, through this thread or on its socket."""
    if any(entry.moved_bytes for entry in snapshot.activity_of(wait.thread.tid)):
        return True
    socket = wait.socket
    return socket is not None and bool((socket.window_received_bytes or 0) + (socket.window_acked_bytes or 0))


def _joining(snapshot: Snapshot, wait: Wait, reason: str) -> Status:
    child = waited_child(wait.thread)
    relative = next((relative for relative in snapshot.children if relative.pid == child), None)
    if relative is not None:
        stopped = ", which is stopped" if relative.state in "Tt" else ""
        reason += f" ({process(relative.pid, relative.command)}{stopped})"
    owner = wait.lock.owner if wait.lock and wait.lock.kind == "join" else None
    behind = (evidence.who(snapshot, owner.tid),) if owner and owner.tid is not None else _behind(wait)
    return Status(wait.thread, JOINING, reason, wait, behind)


def _futex(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    lock, thread = wait.lock, wait.thread
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    timed = thread.syscall is not None and thread.syscall.endless is False
    spent = wait.age_s is not None and wait.age_s >= limit_s and not timed
    if lock is not None and lock.kind == "join":
        return _joining(snapshot, wait, "waits for a thread to finish")
    owner = lock.owner if lock is not None and lock.kind in EXCLUSIVE_KINDS else None
    if lock is not None and owner is not None and owner.state == "alive" and owner.tid is not None:
        held = evidence.who(snapshot, owner.tid)
        if spent and snapshot.thread(owner.tid) is None:
            why = f"waits past its budget for {title(lock)}, held in pid {owner.pid}, which was not looked at"
            return Status(
                thread, INCONCLUSIVE, why, wait, (title(lock), f"held by {held}"), (owner_line(snapshot, lock),)
            )
        return Status(
            thread,
            WAITING,
            f"waits for {title(lock)}, held by {held}",
            wait,
            (title(lock), f"held by {held}"),
            (owner_line(snapshot, lock),),
        )
    if lock is not None and lock.kind == "barrier":
        return Status(thread, WAITING, f"at a barrier: {lock.note}", wait, (title(lock),))
    if lock is not None and lock.kind in _OF_C and not timed and not acquires(wait):
        reason = f"waits for {title(lock)}, and who holds it is not known" + (f": {lock.note}" if lock.note else "")
        return Status(thread, INCONCLUSIVE if spent else WAITING, reason, wait, (title(lock), "holder not known"))
    if acquires(wait):
        named = title(lock) if lock is not None else "a lock"
        if not spent:
            return Status(thread, WAITING, f"acquires {named}", wait, (named,))
        why = (
            "a plain threading.Lock keeps no owner"
            if lock is None or lock.kind in ("lock", "pymutex", "semaphore")
            else "its owner could not be read"
        )
        return Status(
            thread,
            INCONCLUSIVE,
            f"acquires {named} past the budget of {age(limit_s)}, and who holds it cannot be known: {why}",
            wait,
            (named, "holder not known"),
            later=(
                Later(
                    "use an RLock, or acquire with a timeout", "an RLock names its owner, and a timeout ends the wait"
                ),
            ),
        )
    if not wait.frames and snapshot.process.is_python and snapshot.python is None:
        return Status(
            thread,
            INCONCLUSIVE,
            "parked in a futex, and without its Python stack idleness and a deadlock look alike",
            wait,
        )
    if wait.reading.purpose is Purpose.UNKNOWN and not wait.frames and snapshot.process.is_python:
        return Status(thread, IDLE, "a native thread, parked", wait)
    return Status(thread, IDLE, wait.reading.reason or "parked in a futex; nothing here can prove more", wait)


def _semaphore(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    """A semaphore has no owner, and waiting for one is a role as often as an acquire. A `with` block on a lock of
    multiprocessing is an acquire; its queues and pools take turns at one while they are idle."""
    lock = wait.lock
    outside = wait.frames[(wait.reading.frame or 0) + 1 :][:1]
    if lock is None or lock.kind not in SHARED_SEMAPHORES or not outside:
        return Status(wait.thread, IDLE, "waits for a semaphore", wait)
    if any(name in outside[0].file for name in ("multiprocessing/", "billiard/")):
        return Status(wait.thread, IDLE, "waits for its turn at its queue", wait)
    if lock.kind == "process-semaphore":
        return Status(wait.thread, IDLE, "waits for a semaphore shared between processes", wait)
    reason, limit_s = "acquires a lock shared between processes", budgets.request_s(snapshot.process.worker.timeout_s)
    owner = lock.owner if lock.owner is not None and lock.owner.state == "alive" else None
    if owner is not None:
        reason, behind = f"acquires a lock shared between processes: {holder(snapshot, lock)}", (title(lock),)
        if wait.age_s is None or wait.age_s < limit_s or owner.pid == snapshot.process.pid:
            return Status(wait.thread, WAITING, reason, wait, behind)
        later = (Later(f"stucktrace pid {owner.pid}", "it holds the lock: what does it do?"),)
        return Status(
            wait.thread, INCONCLUSIVE, f"{reason}, past the budget of {age(limit_s)}", wait, behind, later=later
        )
    if wait.age_s is None or wait.age_s < limit_s:
        return Status(wait.thread, WAITING, reason, wait)
    why = f"{reason} past the budget of {age(limit_s)}, and who holds it could not be read: its holder may have died"
    return Status(wait.thread, INCONCLUSIVE, why, wait)


def _file_lock(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    lock = next((lock for lock in snapshot.file_locks if lock.waiter_tid == wait.thread.tid), None)
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    if lock is None:
        return Status(wait.thread, WAITING, f"waits in {evidence.call_text(wait.thread)} for a file lock", wait)
    held = file_locks.holders(lock)
    lines = (Evidence("/proc/locks", "holders", len(lock.holders), f"{lock.kind} on {lock.path}: held by {held}"),)
    reason = f"waits for the {lock.kind} lock on {lock.path}, held by {held}"
    if wait.age_s is None or wait.age_s < limit_s:
        return Status(wait.thread, WAITING, reason, wait, (lock.path, held), lines)
    later = tuple(Later(f"stucktrace pid {pid}", "it holds the lock: what does it do?") for pid in lock.holders[:2])
    reason += f", past the budget of {age(limit_s)}: standing by on purpose, or stuck with its holder"
    return Status(wait.thread, INCONCLUSIVE, reason, wait, (lock.path, held), lines, later)


def _peer(snapshot: Snapshot, budgets: Budgets, wait: Wait, reason: str) -> Status:
    """`waiting`: for a live peer, a lock or another thread, inside its budget.

    Something is owed and may still come. The budget stands among the evidence: 5 s for what a protocol owes at
    once, else `--stuck-after`, the worker's own timeout, or 30 s.

    Likely: always. No rule found that it cannot come, and the budget is not spent, or the thread waits for another
    one of the process, which is judged by itself.

    Later: look again after the budget; `stucktrace agent` does that by itself.

    Not: a wait that began without anything being owed (`idle`).

    Wrong: what will never come looks the same until its budget is over.

    Try: a request to a server that takes its time:

        python3 -c "import socket, time
        s = socket.create_server(('127.0.0.1', 8091)); c = s.accept()[0]; c.recv(999); time.sleep(60)" & sleep 1
        python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8091')" &
        sleep 2; stucktrace pid $!
    """
    socket = wait.socket
    owed = wait.reading.purpose is Purpose.OWED
    limit_s = budgets.owed_s
    if not owed:
        main = wait.thread.tid == snapshot.process.pid
        limit_s = budgets.request_s(snapshot.process.worker.timeout_s, main=main)
    lines = [Evidence("budget", "budget_s", limit_s, f"such a wait may last {age(limit_s)} here", "s")]
    if socket is not None and socket.unacked == 0 and socket.protocol == "tcp":
        lines.append(Evidence("tcp_info", "unacked", 0, f"everything sent to {socket.remote} is acknowledged"))
    if socket is None and _fd_hidden(snapshot, wait):
        return Status(wait.thread, INCONCLUSIVE, f"{reason}, but what its fd is could not be read", wait)
    to = f" ({socket.remote})" if socket is not None and socket.remote else ""
    return Status(wait.thread, WAITING, f"{reason or 'waits for a peer'}{to}", wait, _behind(wait), tuple(lines))


def _fd_hidden(snapshot: Snapshot, wait: Wait) -> bool:
    call = wait.thread.syscall
    return call is not None and call.fd is not None and not snapshot.fds_complete and call.fd not in snapshot.fds


def _by_call(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> Status:
    """No frame says what the wait is for: what can be said of the call."""
    thread, call = wait.thread, wait.thread.syscall
    if call is None:
        return Status(thread, IDLE, wait.reading.reason or "asleep under its Python stack", wait)
    if call.name in SLEEP_CALLS - {"pause"}:
        return Status(thread, IDLE, "sleeps", wait)
    if call.name in _SIGNAL_CALLS:
        return Status(thread, IDLE, "waits for a signal", wait)
    if call.name in CHILD_CALLS:
        return _joining(snapshot, wait, "waits for a child process")
    if call.name in _ACCEPT_CALLS or (wait.socket is not None and wait.socket.state == "LISTEN"):
        return Status(thread, IDLE, "waits for a connection", wait, _behind(wait))
    if wait.pipe is not None:
        return _pipe(snapshot, wait, wait.pipe)
    if wait.socket is not None:
        return _socket(snapshot, budgets, wait, wait.socket)
    if call.name in _POLL_CALLS:
        return Status(thread, IDLE, f"waits for events ({call.name})", wait)
    if _fd_hidden(snapshot, wait):
        return Status(
            thread, INCONCLUSIVE, f"waits in {call.name} on fd {call.fd}, and what that is could not be read", wait
        )
    link = snapshot.fds.get(call.fd) if call.fd is not None else None
    if link is not None:
        return Status(thread, IDLE, f"waits in {call.name} on {link}", wait, (link,))
    return Status(thread, IDLE, f"waits in {evidence.call_text(thread)}", wait)


def _socket(snapshot: Snapshot, budgets: Budgets, wait: Wait, socket: SocketFact) -> Status:
    peer = f" {socket.remote}" if socket.remote else ""
    writes = wait.thread.syscall is not None and wait.thread.syscall.waits_to in ("write", "connect")
    if writes:
        return Status(wait.thread, WAITING, f"sends to{peer or ' its peer'}", wait, _behind(wait))
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    blind = snapshot.process.is_python and snapshot.python is None and wait.age_s is not None and wait.age_s >= limit_s
    if blind and socket.protocol in ("tcp", "unix-stream"):
        why = (
            f"waits for data from{peer or ' its peer'} past the budget of {age(limit_s)}, and without its Python stack "
            "nobody knows what for"
        )
        return Status(wait.thread, INCONCLUSIVE, why, wait, _behind(wait))
    return Status(
        wait.thread,
        IDLE,
        f"waits for data from{peer or ' its peer'}; nothing shows that an answer is owed",
        wait,
        _behind(wait),
    )


def _pipe(snapshot: Snapshot, wait: Wait, pipe: PipeFact) -> Status:
    writes = wait.thread.syscall is not None and wait.thread.syscall.waits_to == "write"
    others = [pid for pid in (pipe.readers if writes else pipe.writers) if pid != snapshot.process.pid]
    names = {relative.pid: relative.command for relative in snapshot.relatives}
    held = listing([process(pid, names.get(pid, "")) for pid in others[:4]])
    end = f", whose other end {held} {'holds' if len(others) == 1 else 'hold'}" if held else ""
    name = pipe.path or "a pipe"
    if writes:
        return Status(wait.thread, WAITING, f"waits for room in {name}{end}", wait, _behind(wait))
    return Status(wait.thread, IDLE, f"waits for data from {name}{end}", wait, _behind(wait))


def _behind(wait: Wait) -> tuple[str, ...]:
    """The end of the chain: what is behind the fd or the futex."""
    if len(wait.fds) > 1:
        return (f"{len(wait.fds)} fds that it watches",)
    if wait.socket is not None:
        socket = wait.socket
        name = f"{socket.protocol} {socket.local}" + (f" -> {socket.remote}" if socket.remote else "")
        holders = (
            (", ".join(process(pid, socket.peer.command) for pid in socket.peer.pids[:2]),)
            if socket.peer and socket.peer.pids
            else ()
        )
        return (name, *holders)
    if wait.pipe is not None:
        return (wait.pipe.path or f"pipe {wait.pipe.inode}",)
    if wait.lock is not None:
        return (title(wait.lock),)
    return ()
