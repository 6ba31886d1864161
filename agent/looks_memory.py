"""What a look reads of the target's objects in memory: locks, pools, greenlets and tasks, connections to a broker.

Each is asked for only where the frames or the calls say that there is something to read: where not, nothing is loaded.
"""

from __future__ import annotations

from functools import partial

from stucktrace import join
from stucktrace.facts import (
    AmqpFact,
    GreenletFact,
    LockFact,
    PoolFact,
    ProcessFact,
    PythonFact,
    Relative,
    SocketFact,
    Subscription,
    ThreadFact,
)
from stucktrace.run import Run

AMQP_CLIENTS = ("/amqp/", "/kombu/", "/pika/", "/amqpstorm/", "/aiormq/", "/aio_pika/", "/librabbitmq/")
"""Parts of the paths of AMQP's client libraries."""


def in_futexes(
    run: Run,
    process: ProcessFact,
    threads: tuple[ThreadFact, ...],
    python: PythonFact | None,
    relatives: tuple[Relative, ...],
) -> tuple[tuple[LockFact, ...], tuple[PoolFact, ...]]:
    """The locks that threads wait for, and the pools: both are futexes. Where nobody is in one, nothing is loaded."""
    if not any(thread.syscall is not None and thread.syscall.name.startswith("futex") for thread in threads):
        return (), ()
    from stucktrace.collectors import locks, pools

    found = run.collect("locks", (), partial(locks.collect, process, threads, python, relatives), process.pid)
    return found, run.collect("pools", (), partial(pools.collect, process, threads, python), process.pid)


def amqp(
    run: Run,
    process: ProcessFact,
    threads: tuple[ThreadFact, ...],
    python: PythonFact | None,
    sockets: tuple[SocketFact, ...],
    *,
    tasks: tuple[GreenletFact, ...],
) -> tuple[AmqpFact, ...]:
    """The state of the connections to a broker. Where no thread or task is in a client library, nothing is loaded.

    A Celery child that was started anew still has the frames of its parent's loop below those in which it is parked.
    """
    python = join.serving(python)
    stacks = [thread.frames for thread in python.threads] if python is not None else []
    stacks += [task.frames for task in tasks]
    if python is None or not any(part in frame.file for frames in stacks for frame in frames for part in AMQP_CLIENTS):
        return ()
    from stucktrace.collectors import amqp_clients

    collect = partial(amqp_clients.collect, process, threads, python, sockets, tasks)
    return run.collect("amqp", (), collect, process.pid)


def subscriptions(run: Run, process: ProcessFact, python: PythonFact | None) -> tuple[Subscription, ...]:
    """The queues that it means to consume: of a Celery worker's main process, or one that runs a kombu consumer.
    Left, as greenlets are, to who asks for one process."""
    if not run.options.greenlets or (process.worker.kind != "celery-main" and not _in_kombu(python)):
        return ()
    from stucktrace.collectors import subscriptions

    return run.collect("subscriptions", (), partial(subscriptions.collect, process), process.pid)


def _in_kombu(python: PythonFact | None) -> bool:
    return python is not None and any("/kombu/" in frame.file for thread in python.threads for frame in thread.frames)


def child_locks(run: Run, process: ProcessFact, relatives: tuple[Relative, ...]) -> tuple[LockFact, ...]:
    if not process.is_python or not any(relative.relation == "child" for relative in relatives):
        return ()
    from stucktrace.collectors import child_locks

    return run.collect("child locks", (), partial(child_locks.collect, process, relatives), process.pid)


def greenlets(
    run: Run,
    process: ProcessFact,
    threads: tuple[ThreadFact, ...],
    python: PythonFact | None,
    locks: tuple[LockFact, ...],
) -> tuple[GreenletFact, ...]:
    """What is suspended in the threads of hubs and event loops. It takes long enough to be left to who asks for one
    process, and to a loop that waits for a lock."""
    from stucktrace.collectors import hubs

    loops, hub = hubs.loop_threads(python), hubs.has_greenlets(process, python)
    waiters = {lock.waiter_tid for lock in locks}
    # The hub's thread is nearly always the first one; the native threads of a pool wait in locks for their work.
    stands_still = waiters & {*loops, *((process.pid,) if hub else ())}
    found: tuple[GreenletFact, ...] = ()
    if not run.options.greenlets and not stands_still:
        return found
    if hub:
        from stucktrace.collectors import greenlets

        collect = partial(greenlets.collect, process, threads, python, locks=bool(waiters))
        seen = run.collect("greenlets", greenlets.Greenlets(()), collect, process.pid)
        found += seen.facts
        for missing in seen.missing:
            run.miss(missing, process.pid)
    if loops and python is not None:
        from stucktrace.collectors import asyncio_tasks

        tasks = partial(asyncio_tasks.collect, process, python, locks=bool(waiters))
        suspended = run.collect("asyncio tasks", asyncio_tasks.Tasks(()), tasks, process.pid)
        found += suspended.facts
        for missing in suspended.missing:
            run.miss(missing, process.pid)
    return found
