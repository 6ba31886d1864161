"""Incidents of memory, files and the conntrack table: `oom-killed`, `memory-growth`, `fd-growth`,
`conntrack-pressure`. Pure."""

from __future__ import annotations

from stucktrace.diagnosis.model import CRITICAL, LIKELY, PROVEN, WARNING, Evidence, Finding, Later, Now
from stucktrace.diagnosis.words import age, count, process, size
from stucktrace.facts import Snapshot
from stucktrace.incidents import RSS, ConntrackPressure, Growth, OomKilled

_ROLES = {
    "gunicorn-master": "gunicorn's master",
    "gunicorn-worker": "gunicorn's worker",
    "celery-main": "Celery's main process",
    "celery-child": "the child of a Celery pool",
    "celery-beat": "Celery beat",
}
_SHOWN = 6
_FULL = 0.95
"""Entries that expire make room for a moment, so a table is never quite full."""


def _who(snapshot: Snapshot) -> str:
    fact = snapshot.process
    return f"{_ROLES.get(fact.worker.kind, fact.command or 'the process')} (pid {fact.pid})"


def oom_killed(snapshot: Snapshot, incident: OomKilled) -> Finding:
    """`oom-killed`: the kernel killed it for its memory.

    The process was chosen by the kernel's OOM killer: its cgroup was at its limit, or the node ran out of memory.

    Proven: the kernel's own event named this process.

    Likely: without the event: it ended by SIGKILL, and its cgroup's counter of OOM kills grew; another process of
    the cgroup may have been the victim.

    Now: raise the limit, or run fewer workers in it; what it had in its hands is lost already.

    Later: bound the workers: `--max-requests` with jitter; Celery: `--max-memory-per-child`,
    `--max-tasks-per-child`.

    Not: a SIGKILL by hand.

    Wrong: only as said under likely.

    Try: `make test T=test_a_worker_that_the_kernel_kills_for_its_memory` in a clone: a real OOM kill in a cgroup of
    its own.
    """
    pid, kind = snapshot.process.pid, snapshot.process.worker.kind
    limit = incident.limit_bytes
    if limit is not None:
        where = f": its cgroup may use {size(limit)}"
    else:
        where = ": its cgroup has no limit, so the node ran out of memory" if incident.cgroup else ""
    held = f" while it held {size(incident.rss_bytes)}" if incident.rss_bytes is not None else ""
    lines = [
        Evidence("mark_victim", "pid", pid, "the kernel's OOM killer chose it", time=incident.time)
        if incident.seen
        else Evidence(
            "cgroup",
            "oom_kill",
            True,
            "it ended by SIGKILL, and its cgroup's oom_kill counter grew",
            time=incident.time,
        )
    ]
    if incident.rss_bytes is not None:
        text = f"resident when last sampled: {size(incident.rss_bytes)}"
        lines.append(Evidence("/proc/PID/stat", "rss", incident.rss_bytes, text, "bytes"))
    if limit is not None:
        text = f"limit of the cgroup {incident.cgroup}: {size(limit)}"
        lines.append(Evidence("cgroup", "memory.max", limit, text, "bytes"))
    if incident.usage_bytes is not None:
        text = f"used by all of the cgroup: {size(incident.usage_bytes)}"
        lines.append(Evidence("cgroup", "memory.current", incident.usage_bytes, text, "bytes"))
    lost = {"gunicorn-worker": "the requests that it had in its hands are", "celery-child": "the task in its hands is"}
    bound = (
        Later("bound the children: --max-memory-per-child, --max-tasks-per-child", "a child that grew is replaced")
        if kind.startswith("celery")
        else Later("bound the workers: --max-requests with --max-requests-jitter", "a worker that grew is replaced")
    )
    return Finding(
        "oom-killed",
        PROVEN if incident.seen else LIKELY,
        f"the kernel killed {_who(snapshot)} to get memory back{held}{where}",
        evidence=tuple(lines),
        severity=CRITICAL,
        now=(
            Now(
                "raise the memory limit, or run fewer workers in it",
                "the node has to have that memory",
                f"{lost.get(kind, 'what it had in its hands is')} lost already",
            ),
        ),
        later=(bound,),
        chain=(f"pid {pid}", "OOM killer", incident.cgroup or "the node's memory"),
        subject=incident.application,
    )


def growth(snapshot: Snapshot, incident: Growth) -> Finding:
    """`memory-growth`: its memory has grown steadily, and reaches its limit soon.

    A trend, told before it ends in an OOM kill. It is advice: nothing is stuck.

    Likely: always. For half an hour and 30 samples each third of the time shows the growth, the last one hardly
    less than the whole, next to nothing of it was given back, it has doubled and is over 200 MB more, and at this
    rate it reaches the limit within a day.

    Later: find what holds the memory (memray, tracemalloc); meanwhile let workers be replaced.

    Not: a warm-up; a cache that fills and then stays; a saw-tooth.

    Wrong: it is a prediction: a load that only grew for an hour looks the same.

    Try: `python3 -c` with a list that grows by a megabyte a second, `stucktrace agent --match python3` beside it,
    and half an hour.

    `fd-growth`: its open files have grown steadily, and reach their limit soon.

    At the limit every open, accept and connect fails with EMFILE. It is advice: nothing is stuck.

    Likely: always. For ten minutes and 20 samples each third of the time shows the growth, next to nothing was
    given back, over 100 files came in addition, half of the limit is used up, and at this rate the rest is within a
    day.

    Now: `ls -l /proc/PID/fd` shows what they are.

    Later: close what is opened: pools with a bound, `with` around files and responses.

    Not: a pool that fills up to its bound; a saw-tooth.

    Wrong: it is a prediction.

    Try: a process that opens a file a second and keeps it, `stucktrace agent --match` beside it, and ten minutes.
    """
    memory = incident.what == RSS
    (first_at, first), (last_at, last) = incident.samples[0], incident.samples[-1]
    span_s = last_at - first_at
    shown = size if memory else _files
    left_s = (incident.limit - last) / incident.per_s if incident.limit is not None and incident.per_s > 0 else None
    until = (
        f"; at this rate it reaches {shown(int(incident.limit))} ({incident.limit_source}) in {age(left_s)}"
        if incident.limit is not None and left_s is not None
        else ""
    )
    step = max(1, len(incident.samples) // (_SHOWN - 1))
    picked = [*incident.samples[:-1:step], incident.samples[-1]]
    unit = "bytes" if memory else "files"
    subject = incident.application
    return Finding(
        "memory-growth" if memory else "fd-growth",
        LIKELY,
        f"{_who(snapshot)} grows: from {shown(int(first))} to {shown(int(last))} {'of memory ' if memory else ''}"
        f"in {age(span_s)}{until}",
        evidence=tuple(
            Evidence(
                "/proc/PID/stat" if memory else "/proc/PID/fd",
                incident.what,
                value,
                f"{age(last_at - at)} before: {shown(int(value))}",
                unit,
                at,
            )
            for at, value in picked
        ),
        severity=WARNING,
        now=_see(snapshot) if not memory else (),
        later=(
            Later(
                "find what holds it (memray attach, tracemalloc); meanwhile let workers be replaced: --max-requests, "
                "--max-memory-per-child",
                "what only grows ends at the limit, with an OOM kill",
            )
            if memory
            else Later(
                "close what is opened: pools with a bound, `with` around files and responses",
                "at the limit every open, accept and connect fails with EMFILE",
            ),
        ),
        chain=(f"pid {snapshot.process.pid}", f"{incident.what} {shown(int(last))}", incident.limit_source),
        subject=subject,
    )


def _see(snapshot: Snapshot) -> tuple[Now, ...]:
    return (Now(f"see what they are: ls -l /proc/{snapshot.process.pid}/fd", "", ""),)


def _files(number: int) -> str:
    return count(number, "open file")


def conntrack_pressure(snapshot: Snapshot, incident: ConntrackPressure) -> Finding:
    """`conntrack-pressure`: the conntrack table of its connections is full.

    Without room every new connection through that table fails; those that have an entry go on. It is advice for the
    node, told once for a network namespace.

    Proven: the table is full, or nearly, and first packets or unanswered entries were thrown out for want of room
    meanwhile.

    Likely: it is 95 % full, and nothing was thrown out yet.

    Now: raise `net.netfilter.nf_conntrack_max` on the node; an entry takes about 320 bytes.

    Later: find who fills it (`conntrack -L`), reuse connections, shorten the timeout of TIME_WAIT.

    Not: drops in a table with room: packets of one flow that race each other are dropped too.

    Wrong: none is known where it is proven.

    Try: `make test T=test_a_table_without_room_is_said` in a clone, in a network namespace of its own.
    """
    after, dropped = incident.after, incident.after.drop - incident.before.drop
    early = incident.after.early_drop - incident.before.early_drop
    filled = f"{after.count} of {after.maximum} entries"
    hurts = f", and {count(dropped, 'new connection was', 'new connections were')} dropped" if dropped > 0 else ""
    lines = [Evidence("ctnetlink", "count", after.count, f"{filled} in use", "entries")]
    if dropped > 0:
        text = f"drop grew by {dropped} in {age(incident.window_s)}"
        lines.append(Evidence("ctnetlink", "drop", dropped, text, "packets"))
    if early > 0:
        text = f"early_drop grew by {early}: unanswered entries were thrown out to make room"
        lines.append(Evidence("ctnetlink", "early_drop", early, text, "entries"))
    return Finding(
        "conntrack-pressure",
        PROVEN if dropped > 0 or early > 0 else LIKELY,
        f"the conntrack table that {process(snapshot.process.pid, snapshot.process.command)} lives with is "
        f"{'full' if (after.fill or 0.0) >= _FULL else 'nearly full'}: {filled}{hurts}",
        evidence=tuple(lines),
        severity=WARNING,
        now=(
            Now(
                "raise net.netfilter.nf_conntrack_max on the node",
                "each entry takes about 320 bytes of kernel memory",
                "nothing",
            ),
        ),
        later=(
            Later(
                "find who fills it (conntrack -L), reuse connections, shorten "
                "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
                "without room every new connection of the node fails; those that have an entry go on",
            ),
        ),
        chain=(f"network namespace {after.netns}", filled),
        subject=f"network namespace {after.netns}",
    )
