"""A pool of connections that are all out, and do not come back: `pool-starved` too.

Its threads wait for what only they could give back, or those that have it are stuck elsewhere: then the reason is the
finding on them.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.pools import caller, endless
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import PoolFact, PoolMember, Snapshot

_SHOWN = 4


def connections_out(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A thread waits without a timeout for a connection, and each one is with a thread that does not give it back.

    `proven`: open `with` blocks have as many as the pool may have, and every thread that has one waits for another of
    the same pool without a timeout. `likely`: the same where variables tell who has them (one may keep what was given
    back), and no other thread does anything; or those that have them sleep elsewhere for longer than a request may
    take, and their own wait is the reason. A holder that has moved lately may give its connection back soon: then the
    wait is `waiting`.
    """
    known = {wait.tid: wait for wait in waits(snapshot)}
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    for pool in snapshot.pools:
        if pool.kind != "connections" or not pool.complete or not pool.members:
            continue
        stuck = {each.tid: known[each.tid] for each in pool.awaited if each.tid in known and endless(known[each.tid])}
        holders = {member.tid for member in pool.members if member.tid is not None}
        if not stuck:
            continue
        oldest_s = max((wait.age_s or 0.0) for wait in stuck.values())
        everybody = [known.get(thread.tid) for thread in snapshot.threads if thread.tid not in stuck]
        quiet = oldest_s >= budgets.owed_s and all(_rests(wait, budgets.owed_s) for wait in everybody)
        if holders <= stuck.keys() and (pool.certain or quiet):
            yield _told(snapshot, pool, stuck, "", PROVEN if pool.certain else LIKELY)
        elif oldest_s >= limit_s and all(tid in stuck or _sits(known.get(tid), limit_s) for tid in holders):
            elsewhere = [known[tid] for tid in holders if tid not in stuck]
            yield _told(snapshot, pool, stuck, _where(snapshot, elsewhere), LIKELY)


_RESTS = frozenset({Purpose.WORK, Purpose.CONDITION, Purpose.JOIN, Purpose.LOCK})


def _rests(wait: Wait | None, at_least_s: float) -> bool:
    """It waits for work or for others, or has slept for a while: it does nothing with a connection."""
    return wait is not None and (wait.purpose in _RESTS or _sits(wait, at_least_s))


def _sits(wait: Wait | None, limit_s: float) -> bool:
    """It sleeps for longer than a request may take, in one call."""
    if wait is None or wait.polls or wait.thread.state not in "SDTt" or wait.thread.slept_through is False:
        return False
    return wait.age_s is not None and wait.age_s >= limit_s


def _where(snapshot: Snapshot, elsewhere: list[Wait]) -> str:
    return listing(
        f"{evidence.who(snapshot, wait.tid)} {wait.reading.reason or f'sits in {evidence.call_text(wait.thread)}'} for "
        f"{age(wait.age_s)}"
        for wait in elsewhere
    )


def has(snapshot: Snapshot, member: PoolMember) -> str:
    named = f" ({member.does})" if member.does else ""
    return f"{evidence.who(snapshot, member.tid)} has one{named}"


def _told(snapshot: Snapshot, pool: PoolFact, stuck: dict[int, Wait], elsewhere: str, confidence: str) -> Finding:
    holders = {member.tid for member in pool.members}
    first = max(
        (wait for tid, wait in stuck.items() if elsewhere or tid in holders),
        key=lambda wait: (wait.age_s or 0.0, -wait.tid),
        default=next(iter(stuck.values())),
    )
    frame = caller(first, next(each.frame for each in pool.awaited if each.tid == first.tid), of_pool=False)
    name, size = evidence.who(snapshot, first.tid), len(pool.members)
    since = f" for {age(first.age_s)}" if first.age_s is not None else ""
    whose = (
        f"its only one is out: {elsewhere}"
        if elsewhere and size == 1
        else f"all {size} are out: {elsewhere}"
        if elsewhere
        else "it has the only one itself"
        if size == 1
        else f"all {size} are with threads that wait for another one"
    )
    lines = [
        Evidence(
            "process_vm_readv",
            "lent",
            size,
            f"{pool.name}: {listing([has(snapshot, member) for member in pool.members], _SHOWN)}"
            + (f"; it may have {pool.size}" if pool.certain else "; their variables have them"),
        ),
        evidence.call_line(snapshot, first.thread, first.age_s),
    ]
    others = sorted(holders - {first.tid, None}, key=lambda tid: tid or 0)
    for tid in others[:_SHOWN]:
        thread = snapshot.thread(tid or 0)
        if thread is not None:
            lines.append(evidence.call_line(snapshot, thread))
    return Finding(
        "pool-starved",
        confidence,
        f"{name} waits{since} for a connection of {pool.name}, and none comes back: {whose}",
        evidence=(*lines, *evidence.frame_line(first.frames, frame)),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "take one connection for a piece of work and pass it on, instead of asking for a second one while "
                "holding the first",
                "as soon as every one is held by a thread that wants another, nobody can go on",
            )
            if not elsewhere
            else Later(
                "give back the connection before waiting for something else, and give that wait a timeout",
                "who waits for a connection inherits the wait of those that have them",
            ),
            Later("give the pool's wait a timeout", "the request fails then, with the place in the traceback"),
        ),
        tid=first.tid,
        chain=(
            name,
            f"waits for a connection of {pool.name}",
            f"{count(size, 'connection')}, all out",
            *((elsewhere,) if elsewhere else (f"with {listing(evidence.who(snapshot, tid) for tid in holders)}",)),
        ),
        frame=frame,
        explains=tuple(tid for tid in stuck if tid != first.tid),
    )
