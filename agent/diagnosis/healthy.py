"""The verdict on a process in which nothing is stuck: idle, working, waiting, or that too little could be seen.

Each thread gets a status of its own (`statuses.py`); threads that do the same are one group, and the most telling group
gives the verdict. A process is never called idle when what would tell a deadlock from idleness could not be read.
"""

from __future__ import annotations

from collections.abc import Iterable

from stucktrace.diagnosis import consumer_words, evidence
from stucktrace.diagnosis.model import INFO, LIKELY, POSSIBLE, UNKNOWN, WARNING, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.statuses import IDLE, INCONCLUSIVE, JOINING, WAITING, WORKING, Status, status_of
from stucktrace.diagnosis.waits import waits
from stucktrace.diagnosis.words import count, listing
from stucktrace.facts import Snapshot

_TELLING = (INCONCLUSIVE, WAITING, WORKING, JOINING, IDLE)
"""Which group gives the verdict. Who only waits for another thread of the process says less than that thread."""
_CODES = {JOINING: "waiting"}
_GROUPS_SAID = 4

_ROLES = {
    "gunicorn-master": "the gunicorn master",
    "gunicorn-worker": "the gunicorn worker",
    "celery-main": "the Celery worker's main process",
    "celery-child": "the child of the Celery worker's pool",
    "celery-beat": "Celery beat",
}
_VERBS = {"idle": "is idle", "working": "works", "waiting": "waits", "inconclusive": "cannot be judged"}


def verdict(snapshot: Snapshot, budgets: Budgets, findings: Iterable[Finding]) -> Finding:
    """`inconclusive`: what was needed could not be read, so nothing is said.

    Whether it is idle or stuck depends on something that stucktrace could not see: the Python stacks, a system
    call, a lock's owner. It is never reported as healthy then.

    Likely: neither stacks nor calls could be read; or the stack alone, and it does not say whether what the thread
    waits for can still come; or a thread acquires a lock for longer than a request may take
    and who holds it cannot be known (a plain lock of Python in a place that is not read, a lock of C code without
    an owner, a lock held by a process that was not looked at, a file's lock that a leader may hold on purpose).

    Possible: a rule failed on odd data; the others were asked all the same.

    Now: see "Could not be seen" in the report: each line names what would show more. `stucktrace doctor` tests all of
    it.

    Later: where a lock hides its holder, an RLock or an acquire with a timeout.

    Not: a verdict on the process. Its exit status is 4, so that scripts can tell it from 0 and 1.

    Wrong: it says nothing that could be wrong.

    Try: a look without the right to see anything:

        sleep 60 & setpriv --reuid 65534 --clear-groups stucktrace pid $!
    """
    open_question = next((f for f in findings if f.verdict_class == UNKNOWN and f.confidence != POSSIBLE), None)
    if open_question is not None:
        return open_question
    if _blind(snapshot):
        return _nothing_seen(snapshot)
    known = {wait.thread.tid: wait for wait in waits(snapshot)}
    alive = [thread for thread in snapshot.threads if thread.state not in "ZX"]
    statuses = [status_of(snapshot, budgets, thread, known.get(thread.tid)) for thread in alive]
    return _verdict(snapshot, _grouped(snapshot, statuses))


def _blind(snapshot: Snapshot) -> bool:
    """Neither a Python stack nor a system call nor a running thread was seen."""
    alive = [thread for thread in snapshot.threads if thread.state not in "ZX"]
    if not alive:
        return True
    readable = any(thread.syscall is not None or thread.state in "RD" for thread in alive)
    return not readable and not (snapshot.python and any(thread.frames for thread in snapshot.python.threads))


def _nothing_seen(snapshot: Snapshot) -> Finding:
    what = (
        "the Python stacks nor the system calls" if snapshot.process.is_python else "the threads nor their system calls"
    )
    return Finding(
        "inconclusive",
        LIKELY,
        f"neither {what} of pid {snapshot.process.pid} could be read, so nothing can be said about what it waits for",
        evidence=evidence.missing_line(snapshot),
        severity=WARNING,
        later=tuple(Later(missing.remedy, missing.what) for missing in snapshot.seen.missing[:3] if missing.remedy),
        tid=snapshot.process.pid,
    )


def _grouped(snapshot: Snapshot, statuses: Iterable[Status]) -> list[list[Status]]:
    """Threads that do the same, the most telling first; within a group the main thread first."""
    groups: dict[tuple[str, str], list[Status]] = {}
    for status in statuses:
        groups.setdefault((status.kind, status.reason), []).append(status)
    main = snapshot.process.pid
    for group in groups.values():
        group.sort(key=lambda status: (status.thread.tid != main, status.thread.tid))
    return sorted(groups.values(), key=lambda group: (_TELLING.index(group[0].kind), group[0].thread.tid != main))


def _verdict(snapshot: Snapshot, groups: list[list[Status]]) -> Finding:
    first = groups[0][0]
    code = _CODES.get(first.kind, first.kind)
    process = snapshot.process
    role = _ROLES.get(process.worker.kind, "the process")
    said = [_sentence(snapshot, group) for group in groups[:_GROUPS_SAID]]
    rest = sum(len(group) for group in groups[_GROUPS_SAID:])
    if rest:
        said.append(count(rest, "more thread"))
    lines: list[Evidence] = []
    for group in groups[:_GROUPS_SAID]:
        status = group[0]
        lines.append(evidence.call_line(snapshot, status.thread, status.wait.age_s if status.wait else None))
        lines.extend(status.lines)
    if code == "inconclusive":
        lines.extend(evidence.missing_line(snapshot))
    wait = first.wait
    lines.extend(evidence.frame_line(wait.frames, wait.reading.frame) if wait else ())
    return Finding(
        code,
        LIKELY,
        f"{role} {_VERBS[code]}: {'; '.join(said)}{consumer_words.idle_note(snapshot) if code == 'idle' else ''}",
        evidence=(*lines, *(consumer_words.idle_notes(snapshot) if code == "idle" else ())),
        severity=WARNING if code == "inconclusive" else INFO,
        later=(*first.later, *(consumer_words.idle_later(snapshot) if code == "idle" else ())),
        tid=first.thread.tid,
        fd=first.thread.syscall.fd if first.thread.syscall else None,
        lock=wait.lock.address if wait and wait.lock else None,
        chain=(evidence.who(snapshot, first.thread.tid), evidence.call_text(first.thread), *first.behind),
        frame=wait.reading.frame if wait else None,
    )


def _sentence(snapshot: Snapshot, group: list[Status]) -> str:
    names = {evidence.who(snapshot, status.thread.tid) for status in group}
    who = listing(sorted(names)) if len(group) == 1 else count(len(group), "thread")
    return f"{who}: {group[0].reason}"
