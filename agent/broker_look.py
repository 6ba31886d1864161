"""The broker's own view of an inspected process, read once, and once more where something looks lost.

Between two readings a consumer may subscribe anew, and the lengths of queues that RabbitMQ tells are as old as its
interval of statistics: so the second reading is later than that.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.diagnosis import consumers
from stucktrace.facts import AmqpFact, BrokerFact, Missing, Snapshot
from stucktrace.output import sockets_may_break

if TYPE_CHECKING:
    from stucktrace.collectors.broker_view import View
    from stucktrace.run import Run

AGAIN_S = 6.0
"""RabbitMQ's statistics are made every 5 s (collect_statistics_interval)."""
AT_ONCE_S = 2.0
"""Where the answer is of the moment (rabbitmqctl, which takes seconds itself, and Redis)."""


def asked(run: Run, snapshot: Snapshot, busy: tuple[int, ...]) -> Snapshot:
    """The snapshot with the broker's view. `busy`: the children of the process that do not wait for work."""
    view, pid = run.options.broker, snapshot.process.pid
    if view is None:
        return snapshot
    first = _read(run, view, snapshot, busy)
    if first is not None and not first.connections and first.own_connections and first.kind == "rabbitmq":
        # A connection is listed when its first statistics are made.
        time.sleep(AGAIN_S)
        first = _read(run, view, snapshot, busy)
    if first is not None and not first.connections:
        run.miss(_unknown(first), pid)
    if first is not None:
        snapshot = replace(snapshot, broker=first)
        if consumers.suspicious(snapshot):
            with run.timed("broker, wait"):
                time.sleep(AGAIN_S if first.source == "management API" else AT_ONCE_S)
            second = _read(run, view, snapshot, busy)
            if second is not None:
                snapshot = replace(_read_again(run, snapshot), broker=second, broker_before=first)
    seen = replace(snapshot.seen, missing=(*run.missing.get(pid, ()), *run.for_all))
    return replace(snapshot, seen=seen)


def _read(run: Run, view: View, snapshot: Snapshot, busy: tuple[int, ...]) -> BrokerFact | None:
    from stucktrace.collectors import broker_view

    process = snapshot.process
    queues = tuple(dict.fromkeys(name for each in snapshot.subscriptions for name in each.queues))
    collect = partial(broker_view.collect, view, process, snapshot.sockets, queues)
    with sockets_may_break():
        fact = run.collect("broker", None, collect, process.pid)
    return None if fact is None else replace(fact, busy=busy)


def _read_again(run: Run, snapshot: Snapshot) -> Snapshot:
    """With what the process's own objects say now: a consumer may have come or gone there meanwhile."""
    from stucktrace import looks_memory

    process, python = snapshot.process, snapshot.python
    amqp = looks_memory.amqp(run, process, snapshot.threads, python, snapshot.sockets, tasks=snapshot.greenlets)
    return replace(
        snapshot, subscriptions=looks_memory.subscriptions(run, process, python), amqp=_both(snapshot.amqp, amqp)
    )


def _both(before: tuple[AmqpFact, ...], now: tuple[AmqpFact, ...]) -> tuple[AmqpFact, ...]:
    """The connections of the first reading, without the consumer tags that the second does not have."""
    tags = {
        (fact.local, channel.number, tag)
        for fact in now
        for channel in fact.channels
        for tag in channel.consumers or ()
    }
    return tuple(
        replace(
            fact,
            channels=tuple(
                replace(
                    channel,
                    consumers=None
                    if channel.consumers is None
                    else tuple(tag for tag in channel.consumers if (fact.local, channel.number, tag) in tags),
                )
                for channel in fact.channels
            ),
        )
        for fact in before
    )


def _unknown(fact: BrokerFact) -> Missing:
    """None of the process's connections is among the broker's."""
    if not fact.own_connections:
        return Missing("its connection to the broker", "the process has no TCP connection that it made itself", "")
    return Missing(
        "its connection at the broker",
        f"none of its {fact.own_connections} connections is among the {fact.known_connections} that {fact.where} knows",
        "it is another broker, or addresses are translated on the way (NAT, a proxy): compare by user and client",
    )
