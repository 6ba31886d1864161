"""Pools that cannot go on: `pool-starved`.

The pools collector says what each waiting thread waits for, and whether that runs, is queued, or is nowhere.
A wait with a timeout ends by itself and never counts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.model import PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import DAY, age, count, listing
from stucktrace.facts import Awaited, PoolFact, Snapshot

_SHOWN = 4


def pool_starved(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`pool-starved`: every worker of a pool waits for work, or a connection, that only the pool could give.

    A task waits for another task of the same pool, and all threads do so: what they wait for is in the queue, and
    no thread is left to begin it. The same with a pool of connections that are all with threads that want another
    one.

    Proven: all results that the pool's members wait for are in the queue of a pool that has all the threads it may
    have, or are run by such a member; every member waits without a timeout. Of connections: open `with` blocks have
    all that the pool may have, and each holder waits for another without a timeout.

    Likely: of connections alone: variables tell who has them, and no other thread does anything; or their holders
    have slept elsewhere for longer than a request may take, and the verdict is then on their wait.

    Now: restart the process; the report has the command.

    Later: a pool of their own for inner tasks, or wait outside; one connection for a piece of work, passed on; a
    timeout for `result()` and for the pool's wait.

    Not: a pool that may still start a thread; one of which a single member does anything else; a wait with a
    timeout; a holder of a connection that moved lately.

    Wrong: none is known where it is proven.

    Try: a task that waits for another in a pool of one:

        python3 -c "from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)
        pool.submit(lambda: pool.submit(int).result()).result()" &
        sleep 2; stucktrace pid $!
    """
    stuck = _never(snapshot)
    pools = [pool for pool in snapshot.pools if pool.kind == "threads" and _closed(pool, stuck)]
    if any(each.state == "queued" and each.tid in stuck for pool in pools for each in pool.awaited):
        yield _starved(snapshot, pools, stuck)


def _never(snapshot: Snapshot) -> Mapping[int, list[tuple[PoolFact, Awaited]]]:
    """The threads none of whose awaited results can ever come, with what they wait for."""
    found: dict[int, list[tuple[PoolFact, Awaited]]] = {}
    for pool in snapshot.pools:
        for each in pool.awaited:
            found.setdefault(each.tid, []).append((pool, each))
    known = {wait.tid: wait for wait in waits(snapshot)}
    stuck = {
        tid: results
        for tid, results in found.items()
        if len(results) == results[0][1].of and (wait := known.get(tid)) is not None and endless(wait)
    }
    while True:
        left = {tid: results for tid, results in stuck.items() if all(_comes_never(*each, stuck) for each in results)}
        if len(left) == len(stuck):
            return left
        stuck = left


def _comes_never(pool: PoolFact, each: Awaited, stuck: Mapping[int, object]) -> bool:
    if each.state == "running":
        return each.runs_on in stuck
    return each.state == "queued" and _closed(pool, stuck)


def _closed(pool: PoolFact, stuck: Mapping[int, object]) -> bool:
    """It has all the members that it may have, and none of them goes on."""
    return pool.complete and bool(pool.members) and all(member.tid in stuck for member in pool.members)


def endless(wait: Wait) -> bool:
    """Asleep without a timeout; one of more than a day is none (a way to keep a wait open to Ctrl-C in Python 2)."""
    call = wait.thread.syscall
    return (
        wait.thread.state == "S"
        and call is not None
        and (call.endless is True or (call.timeout_s is not None and call.timeout_s > DAY))
    )


def _starved(
    snapshot: Snapshot, pools: Sequence[PoolFact], stuck: Mapping[int, list[tuple[PoolFact, Awaited]]]
) -> Finding:
    known = {wait.tid: wait for wait in waits(snapshot)}
    first_pool = pools[0]
    members = [member for pool in pools for member in pool.members if member.tid is not None]
    first = known[min(member.tid for member in members if member.tid is not None)]
    frame = stuck[first.tid][0][1].frame
    names = listing([f"{pool.name} ({count(len(pool.members), 'thread')})" for pool in pools])
    ages = [wait.age_s for member in members if (wait := known.get(member.tid or 0)) and wait.age_s is not None]
    since = f", for {age(min(ages))}" if ages else ""
    pool_word = "the thread pool" if len(pools) == 1 else "the thread pools"
    whose = "its own queue" if len(pools) == 1 else "their own queues"
    everyone = "every thread" if len(members) > 1 else "the only thread"
    lines: list[Evidence] = []
    for pool in pools:
        lines.append(
            Evidence(
                "process_vm_readv",
                "queued",
                pool.queued,
                f"{pool.name} may have {count(pool.size or 0, 'thread')}, has {len(pool.members)}, and "
                f"{count(pool.queued or 0, 'task')} in its queue",
            )
        )
    for member in members[:_SHOWN]:
        for pool, each in stuck[member.tid or 0][:1]:
            runs = f"runs {member.does}() and " if member.does else ""
            what = "in the queue, not begun" if each.state == "queued" else f"run by tid {each.runs_on}"
            lines.append(
                Evidence(
                    "process_vm_readv",
                    "awaits",
                    hex(each.result),
                    f"{evidence.who(snapshot, member.tid)} {runs}waits for a future of {pool.name} that is {what}",
                )
            )
    lines.append(evidence.call_line(snapshot, first.thread, first.age_s))
    lines.extend(evidence.frame_line(first.frames, caller(first, frame)))
    return Finding(
        "pool-starved",
        PROVEN,
        f"{everyone} of {pool_word} {names} waits for results of tasks that are still in {whose}{since}: no thread is "
        "left to run them",
        evidence=tuple(lines),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "do not wait inside a task for another task of the same pool: give the inner tasks their own pool, or "
                "return them and wait outside",
                "as soon as every thread of the pool waits, nothing in its queue is ever begun",
            ),
            Later("give result() a timeout", "the wait ends then, with the place in the traceback"),
        ),
        tid=first.tid,
        chain=(
            evidence.who(snapshot, first.tid),
            "waits for a result of",
            f"{first_pool.name}, whose queue holds it",
            "no thread is left to run it",
        ),
        frame=caller(first, frame),
        explains=tuple(tid for tid in stuck if tid != first.tid),
    )


def caller(wait: Wait, frame: int | None, *, of_pool: bool = True) -> int | None:
    """The frame of the program's own code that waits: the one that called the pool's, if `frame` is of the pool."""
    if frame is None:
        return wait.reading.frame
    if not of_pool:
        return frame
    file = wait.frames[frame].file if frame < len(wait.frames) else ""
    return next(
        (index for index, each in enumerate(wait.frames) if index > frame and each.file != file and not each.native),
        frame,
    )
