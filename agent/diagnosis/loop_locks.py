"""A native lock taken in an event loop's thread: which lock, who holds it, and how many stand still behind it.

A lock that the loop does not know stops its thread, and with it every other greenlet or task. So a holder that is
suspended in the same loop is proof that the wait never ends: only that thread could let it go on. Its `with` block is
open, it is the one candidate, and the wait has no timeout. A holder that is another thread says nothing of the kind:
what it waits for, other rules know.
"""

from __future__ import annotations

from dataclasses import replace

from stucktrace.diagnosis import evidence, greenlets
from stucktrace.diagnosis.futexes import acquires, settled
from stucktrace.diagnosis.lock_words import acquires_in, by_tid, for_ever, holding, named, owner_line
from stucktrace.diagnosis.model import PROVEN, Evidence, Finding, Later
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import Frame, GreenletFact, LockFact, Snapshot

_LATER = Later(
    "use locks that the loop knows: patch before anything is imported that makes one (gevent.monkey.patch_all, "
    "eventlet.monkey_patch), asyncio.Lock in coroutines; keep a lock that threads share out of the loop",
    "a native lock stops the thread, and with it everything that the loop runs, perhaps the lock's holder",
)


def told(snapshot: Snapshot, wait: Wait, loop: str, finding: Finding) -> Finding:
    """The `blocked-loop` finding of this wait, with its lock where it is one for a lock."""
    lock = wait.lock
    if lock is None or not acquires(wait):
        return finding
    behind, name = _behind(snapshot, wait), evidence.who(snapshot, wait.tid)
    begin = f"{loop} stands still: its thread {name} has waited {age(wait.age_s)} for {named(lock)}{acquires_in(wait)}"
    holder = suspended_holder(snapshot, wait)
    if holder is not None:
        held_in = evidence.where(_holding(holder, lock))
        one, _ = _nouns(holder)
        never = f"which a suspended {one} of the same thread holds, in {held_in}: it cannot go on before its loop does"
        line = Evidence("memory", "holder", held_in, f"its with block in {held_in} is open, and it is switched out")
        ends = [f"{named(lock)}, held by", f"the suspended {one} in {held_in}", f"which goes on only after {name}"]
        confidence = PROVEN
    else:
        never, *ends = _of_a_thread(snapshot, lock)
        line, confidence = owner_line(snapshot, lock), finding.confidence
    return replace(
        finding,
        confidence=confidence,
        summary=f"{begin}, {never}" + (f"; {behind}" if behind else ""),
        evidence=(*finding.evidence, line),
        later=(_LATER,),
        lock=lock.address,
        chain=(*finding.chain[:2], *ends),
    )


def suspended_holder(snapshot: Snapshot, wait: Wait) -> GreenletFact | None:
    """The one greenlet that holds the lock and can only go on when the thread does that waits for it, for ever."""
    lock = wait.lock
    if lock is None or lock.owner is not None or not (for_ever(wait) and settled(wait.thread)):
        return None
    found = greenlets.holders(snapshot, lock.address)
    return found[0] if len(found) == 1 and found[0].tid == wait.tid else None


def _holding(holder: GreenletFact, lock: LockFact) -> Frame:
    return holder.frames[next(frame for address, frame in holder.locks if address == lock.address)]


def _of_a_thread(snapshot: Snapshot, lock: LockFact) -> tuple[str, ...]:
    """Who holds it, for the summary, and behind it the rest of the chain."""
    owner = lock.owner
    thread = snapshot.thread(owner.tid) if owner is not None and owner.tid is not None else None
    if owner is None or thread is None or owner.state != "alive":
        return "and nothing else of the loop can run; who holds it is not known", named(lock)
    name, frame = evidence.who(snapshot, thread.tid), holding(snapshot, owner)
    inside = f" in {evidence.where(frame)}" if frame else ""
    call, reason = evidence.call_text(thread), _reason(snapshot, thread.tid)
    does = reason or f"is in {call}"
    return f"held by {name}{inside}, which {does}", f"{named(lock)}, held by", name, reason or call


def _reason(snapshot: Snapshot, tid: int) -> str:
    """ "waits for a future's result in web (app.py:12)": what its frames say it waits for."""
    wait = by_tid(snapshot).get(tid)
    if wait is None or not wait.reading.reason or wait.reading.by_name:
        return ""
    return f"{wait.reading.reason}{acquires_in(wait)}"


def _behind(snapshot: Snapshot, wait: Wait) -> str:
    """ "7 greenlets stand still behind it"."""
    behind = greenlets.of_thread(snapshot, wait.tid)
    if not behind:
        return ""
    one, many = _nouns(behind[0])
    return f"{count(len(behind), one, many)} {'stands' if len(behind) == 1 else 'stand'} still behind it"


def _nouns(suspended: GreenletFact) -> tuple[str, str]:
    return ("task", "tasks") if suspended.kind == "asyncio-task" else ("greenlet", "greenlets")
