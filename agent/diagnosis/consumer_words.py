"""What the rules on consumers say: summaries, evidence, remedies, and the note on an idle worker without the view."""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.model import Evidence, Later, Now
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import AmqpFact, BrokerChannel, BrokerFact, BrokerQueue, Snapshot, Subscription

_NAMES = {"rabbitmq": "RabbitMQ", "redis": "Redis"}
QUIET_S = 120.0
"""Twice RabbitMQ's default heartbeat."""


def lost(fact: BrokerFact, subscription: Subscription, queue: BrokerQueue) -> str:
    broker = _NAMES[fact.kind]
    has_none = "has no consumer of this worker there"
    if fact.kind == "redis":
        has_none = "has no blocking pop of this worker"
    others = f" (only {count(queue.consumers, 'other')})" if queue.consumers else ""
    return (
        f"the worker polls and gets nothing: {_messages(queue)} in {queue.name}, and {broker} {has_none}{others}; "
        f"{_why(subscription, queue)}"
    )


def _messages(queue: BrokerQueue) -> str:
    if not queue.ready:
        return "no message waits"
    return f"{count(queue.ready, 'message')} {'waits' if queue.ready == 1 else 'wait'}"


def _why(subscription: Subscription, queue: BrokerQueue) -> str:
    if subscription.active is None:
        return "what the worker itself believes could not be read"
    if queue.name in subscription.active:
        return "the worker itself believes that it still has one"
    return "the worker itself has none either: it was cancelled (celery control cancel_consumer, or by the broker)"


def lost_lines(
    snapshot: Snapshot, fact: BrokerFact, earlier: BrokerFact, subscription: Subscription, queue: BrokerQueue
) -> tuple[Evidence, ...]:
    said = f"{subscription.name} is there for {listing(subscription.queues)}, by {subscription.source}"
    lines = [Evidence("stucktrace", "queues", ",".join(subscription.queues), said)]
    if subscription.active is not None:
        names = listing(subscription.active) or "no queue"
        lines.append(Evidence("memory", "active", ",".join(subscription.active), f"its object consumes {names}"))
    return (*lines, *view_lines(fact, earlier), queue_line(fact, queue))


def view_lines(fact: BrokerFact, earlier: BrokerFact | None = None) -> tuple[Evidence, ...]:
    """Whom the broker knows, and of when that is."""
    names = listing(each.name if fact.kind == "rabbitmq" else each.peer for each in fact.connections)
    how = "by its address" if fact.matched_by == "address" else "by its client properties alone"
    consumed = listing(sorted({consumer.queue for consumer in fact.consumers})) or "no queue"
    # Which lists a blocked client of Redis waits for is not told.
    tells = f"consumers of this worker for {consumed}"
    if fact.kind == "redis":
        tells = "a blocking pop of this worker" if fact.consumers else "no blocking pop of this worker"
    lines = [
        Evidence(fact.source, "connections", len(fact.connections), f"{fact.where} knows it {how}: {names}"),
        Evidence(fact.source, "consumers", len(fact.consumers), f"the broker has {tells}", time=fact.time),
    ]
    if earlier is not None:
        apart_s = fact.time - earlier.time
        text = f"it said the same {age(apart_s)} earlier"
        lines.append(Evidence(fact.source, "apart_s", round(apart_s, 1), text, "s", time=earlier.time))
    return tuple(lines)


def queue_line(fact: BrokerFact, queue: BrokerQueue) -> Evidence:
    consumers = "" if queue.consumers is None else f", {count(queue.consumers, 'consumer')}"
    text = f"queue {queue.name}: {count(queue.ready or 0, 'message')} ready{consumers}"
    return Evidence(fact.source, "ready", queue.ready, text, "messages", time=fact.time)


def chain(snapshot: Snapshot, fact: BrokerFact, end: str) -> tuple[str, ...]:
    return (evidence.who(snapshot, snapshot.process.pid), fact.where, end)


def lost_now(snapshot: Snapshot, subscription: Subscription, queue: BrokerQueue) -> tuple[Now, ...]:
    if subscription.name.startswith("Celery") and queue.name in subscription.cancelled:
        add = f"celery -A APP control add_consumer {queue.name} -d NODE"
        return (Now(add, "none; not where somebody cancelled it to drain this worker", "nothing"), *restart(snapshot))
    return restart(snapshot)


def restart(snapshot: Snapshot) -> tuple[Now, ...]:
    """A warm shutdown works: the loop still turns."""
    if snapshot.process.worker.kind == "celery-main":
        return (
            Now(
                f"kill -TERM {snapshot.process.pid}",
                "a warm shutdown, which waits for running tasks: something has to start the worker again",
                "nothing; what is not acknowledged is delivered again",
            ),
        )
    return remedies.restart(snapshot)


def lost_later(subscription: Subscription, queue: BrokerQueue) -> tuple[Later, ...]:
    return (
        Later(
            f"an alert on queues with messages and no consumer ({queue.name})",
            "a worker cannot know that it lost its consumer: only the broker does",
        ),
    )


def lost_tag(fact: BrokerFact, tag: str, queues: tuple[BrokerQueue, ...]) -> str:
    names = listing(f"{queue.name} ({count(queue.ready or 0, 'message')})" for queue in queues)
    return (
        f"the worker polls for a consumer that {_NAMES[fact.kind]} no longer has (tag {tag}); "
        f"without a consumer there: {names}"
    )


def held(fact: BrokerFact, channel: BrokerChannel, queue: BrokerQueue) -> str:
    deliveries = count(channel.unacked or 0, "unacknowledged delivery", "unacknowledged deliveries")
    return (
        f"the worker polls, works on nothing, and holds {deliveries}, as many as it may: {_NAMES[fact.kind]} sends it "
        f"no more, and {_messages(queue)} in {queue.name}"
    )


def held_lines(
    fact: BrokerFact, earlier: BrokerFact, channel: BrokerChannel, queue: BrokerQueue
) -> tuple[Evidence, ...]:
    text = f"channel {channel.number} has {channel.unacked} deliveries without an acknowledgement, before and now"
    held_line = Evidence(fact.source, "unacked", channel.unacked, text, "messages", time=fact.time)
    return (*view_lines(fact, earlier), held_line, queue_line(fact, queue))


def held_later() -> tuple[Later, ...]:
    return (
        Later(
            "acknowledge or reject each message on every path, errors too; consumer_timeout on the broker",
            "the broker sends no more than the prefetch count allows until then",
        ),
    )


def idle_notes(snapshot: Snapshot) -> Iterator[Evidence]:
    """What an idle consumer's verdict has to add: what the broker says of it, or why only the broker could."""
    fact = snapshot.broker
    if fact is not None and fact.connections:
        yield from view_lines(fact)
        yield from (queue_line(fact, queue) for queue in _own_queues(snapshot, fact))
        return
    for subscription in snapshot.subscriptions:
        if subscription.cancelled:
            text = (
                f"{subscription.name} is there for {listing(subscription.queues)}, by {subscription.source}; its "
                f"object has no consumer for {listing(subscription.cancelled)}"
            )
            yield Evidence("memory", "cancelled", ",".join(subscription.cancelled), text)
    for amqp, last_s in _quiet(snapshot):
        of = f"its heartbeat is {age(amqp.heartbeat_s)}" if amqp.heartbeat_s else "it has no heartbeat"
        text = f"nothing came from {amqp.remote} for {age(last_s)}; {of}"
        yield Evidence("tcp_info", "last_receive_s", round(last_s, 1), text, "s")


def idle_note(snapshot: Snapshot) -> str:
    """The same in a few words, behind the summary; "" for nothing."""
    fact = snapshot.broker
    if fact is not None:
        return _view_note(snapshot, fact)
    knows = "whether messages wait for it, only the broker knows (--broker)"
    for subscription in snapshot.subscriptions:
        if subscription.cancelled:
            return f"; it has no consumer for {listing(subscription.cancelled)}, by its own object: {knows}"
    for amqp, last_s in _quiet(snapshot):
        twice = f"twice its heartbeat of {age(amqp.heartbeat_s)}" if amqp.heartbeat_s else "it has no heartbeat"
        return f"; nothing came from {amqp.remote} for {age(last_s)} ({twice}): {knows}"
    return ""


def _view_note(snapshot: Snapshot, fact: BrokerFact) -> str:
    broker = _NAMES[fact.kind]
    if not fact.connections:
        return f"; {broker} was asked, and does not know its connection"
    consumed = {consumer.queue for consumer in fact.consumers}
    has = "which it consumes", "for which it has no consumer"
    said = [
        f"{_messages(queue)} in {queue.name}, {has[queue.name not in consumed]}"
        for queue in _own_queues(snapshot, fact)
    ]
    return f"; {broker} says: {'; '.join(said[:4])}" if said else f"; {broker} knows its connection"


def _own_queues(snapshot: Snapshot, fact: BrokerFact) -> Iterator[BrokerQueue]:
    for name in dict.fromkeys(name for each in snapshot.subscriptions for name in each.queues):
        queue = fact.queue(name)
        if queue is not None:
            yield queue


def _quiet(snapshot: Snapshot) -> Iterator[tuple[AmqpFact, float]]:
    """Connections of a consumer on which nothing came for twice the heartbeat; without one, for twice the usual one."""
    if not snapshot.subscriptions:
        return
    received = {socket.local: socket.last_receive_s for socket in snapshot.sockets if socket.protocol == "tcp"}
    for amqp in snapshot.amqp:
        last_s = received.get(amqp.local)
        limit_s = 2 * amqp.heartbeat_s if amqp.heartbeat_s else QUIET_S
        if last_s is not None and last_s >= limit_s:
            yield amqp, last_s


def idle_later(snapshot: Snapshot) -> tuple[Later, ...]:
    """How to ask the broker, where a note says that only it knows."""
    if snapshot.broker is not None or not idle_note(snapshot):
        return ()
    ask = f"stucktrace pid {snapshot.process.pid} --broker URL"
    why = "the broker's own view (RabbitMQ's management API, rabbitmqctl, Redis) tells a lost consumer from an idle one"
    return (Later(ask, why),)
