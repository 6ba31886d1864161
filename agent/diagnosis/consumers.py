"""`consumer-lost`, by the broker's own view, read twice: three rules for three ways to lose a consumer.

- `consumer_lost`: a queue that the worker should consume. A Celery worker that polls keeps its consumers; only a start
  and a shutdown are without, and neither is in the loop. The broker asked may be another one, to which the worker only
  publishes, with a queue of the same name: so the connection that the loop holds has to be known there, or some
  consumer of the worker. On Redis the consumer is a blocking pop, and a worker that holds as many messages as it may
  does not pop: it has to be known from its memory that it may take more (not with worker_disable_prefetch, where that
  depends on its tasks).
- `lost_tags`: the client's objects have a consumer tag that the broker does not; its queue is not known.
- `deliveries_held`: a consumer may keep messages on purpose. Celery's reasons to do so (rate limits, ETA) are read from
  its memory and have to be absent. A busy channel is always full, so nothing may have passed on it for a while, which
  only the management API tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import consumer_words as words
from stucktrace.diagnosis.model import CRITICAL, LIKELY, PROVEN, WARNING, Budgets, Finding
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import waits
from stucktrace.facts import BrokerChannel, BrokerFact, BrokerQueue, Snapshot, Subscription

_LOOP = ("asynloop", "synloop")
_LOOP_FILE = "celery/worker/loops.py"
_TASK_FILE = "celery/app/trace.py"
_PARKED = (Purpose.WORK, Purpose.SUBSCRIPTION)
_KEPT_S = 900.0
"""A program may keep a message for a timer or for another's answer, and polls meanwhile. RabbitMQ itself allows twice
this by default (consumer_timeout)."""
_POOLS = ("prefork", "solo")
"""Whether another pool of Celery's works on something is not known for sure: its tasks are threads or greenlets."""
_OWN_QUEUES = (".celery.pidbox", ".reply.celery.pidbox")
_OWN_PREFIXES = ("celeryev.",)
"""Celery's queues for remote control and events, which are no tasks."""
_GUESSED = "the queues without any consumer"


def suspicious(snapshot: Snapshot) -> bool:
    """A first view shows what a second one would make a finding."""
    fact = snapshot.broker
    if fact is None or not _polls(snapshot):
        return False
    return any(_lost(snapshot, fact)) or bool(_held(fact)) or bool(_tags(snapshot, fact))


def consumer_lost(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`consumer-lost`: it polls, and the broker has no consumer of it for the messages that wait.

    From inside, such a worker looks exactly like an idle one. Only the broker tells, so this needs its view
    (`--broker VIEW`), read twice, some seconds apart, with no connection lost in between.

    Proven: in both readings a queue that the worker's own command line, settings or object name had no consumer of
    this worker, and it has messages; the broker knows its connection by address, the view is complete, and nobody
    else consumes that queue.

    Likely: others consume the queue (an operator may be draining this worker); the connection was told by the
    client's properties alone; the worker's queues are not known, and it has no consumer at all while a queue with
    messages has none. Or the client's objects have a consumer tag that the broker does not. Or the broker counts as
    many unacknowledged deliveries as the worker may have, sends no more, nothing passes on the channel, and the
    worker works on none.

    Now: where Celery's own object says that the queue was cancelled, `celery control add_consumer`; else a warm
    shutdown (`kill -TERM`) and a new start: the loop still turns.

    Later: an alert on queues with messages and no consumer, for a worker cannot know that it lost its own; for
    deliveries that are held, an acknowledgement on every path.

    Not: a worker that was asked of another broker than it consumes from; one in a task; on Redis a worker that
    holds as many messages as it may, for then it does not pop; a worker with a rate limit or with ETA tasks, which
    holds deliveries on purpose.

    Wrong: a program other than Celery may keep a message for a timer of its own: it is told only when nothing has
    passed on its channel for a quarter of an hour.

    Try: `celery -A APP control cancel_consumer QUEUE`, a message into QUEUE, then `stucktrace pid PID --broker
    find`. Or `make test T=test_a_worker_that_lost_its_consumer` in a clone.
    """
    fact = snapshot.broker
    earlier = _before(snapshot)
    if fact is None or earlier is None or not _polls(snapshot):
        return
    before = {(each.name, queue.name) for each, queue in _lost(snapshot, earlier)}
    for subscription, queue in _lost(snapshot, fact):
        if (subscription.name, queue.name) not in before or not queue.ready:
            continue
        sure = fact.matched_by == "address" and not _others(fact, queue) and subscription.source != _GUESSED
        yield Finding(
            "consumer-lost",
            PROVEN if sure else LIKELY,
            words.lost(fact, subscription, queue),
            evidence=words.lost_lines(snapshot, fact, earlier, subscription, queue),
            severity=WARNING if _others(fact, queue) else CRITICAL,
            now=words.lost_now(snapshot, subscription, queue),
            later=words.lost_later(subscription, queue),
            tid=snapshot.process.pid,
            chain=words.chain(snapshot, fact, queue.name),
            subject=queue.name,
        )


def lost_tags(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """The client believes in a consumer that the broker does not have, and some queue has messages and no consumer."""
    fact = snapshot.broker
    earlier = _before(snapshot)
    if fact is None or earlier is None or not _polls(snapshot) or any(consumer_lost(snapshot, budgets)):
        return
    for tag in _tags(snapshot, fact) & _tags(snapshot, earlier):
        waiting = tuple(queue for queue in fact.queues if queue.ready and queue.consumers == 0)
        if waiting:
            yield Finding(
                "consumer-lost",
                LIKELY,
                words.lost_tag(fact, tag, waiting),
                evidence=words.view_lines(fact, earlier),
                tid=snapshot.process.pid,
                chain=words.chain(snapshot, fact, f"consumer tag {tag}"),
                now=words.restart(snapshot),
                subject=tag,
            )


def deliveries_held(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """Unacknowledged deliveries fill the worker's prefetch, and it works on none of them."""
    fact = snapshot.broker
    earlier = _before(snapshot)
    if fact is None or earlier is None or not _polls(snapshot) or fact.busy or earlier.busy:
        return
    before = {(channel.connection, channel.number): channel.unacked for channel, _ in _held(earlier)}
    for channel, queue in _held(fact):
        if before.get((channel.connection, channel.number)) != channel.unacked:
            continue
        if _on_purpose(snapshot, channel, budgets) or not parked(snapshot):
            continue
        yield Finding(
            "consumer-lost",
            LIKELY,
            words.held(fact, channel, queue),
            evidence=words.held_lines(fact, earlier, channel, queue),
            tid=snapshot.process.pid,
            chain=words.chain(snapshot, fact, queue.name),
            now=words.restart(snapshot),
            later=words.held_later(),
            subject=queue.name,
        )


def _before(snapshot: Snapshot) -> BrokerFact | None:
    """The first of two complete readings, if all connections that it met are there still; more may have come."""
    fact, earlier = snapshot.broker, snapshot.broker_before
    if fact is None or earlier is None or not fact.connections or not (fact.complete and earlier.complete):
        return None
    still = {each.name for each in earlier.connections} <= {each.name for each in fact.connections}
    return earlier if still and earlier.connections else None


def _polls(snapshot: Snapshot) -> bool:
    """It is in its consumer's loop, and not in a task there. Celery's loop is named; other loops all look alike."""
    if snapshot.process.worker.kind != "celery-main":
        return True
    stacks = [thread.frames for thread in snapshot.python.threads] if snapshot.python else []
    stacks += [greenlet.frames for greenlet in snapshot.greenlets]
    for frames in stacks:
        if any(frame.function in _LOOP and frame.file.endswith(_LOOP_FILE) for frame in frames):
            return not any(frame.file.endswith(_TASK_FILE) for frame in frames)
    return False


def _lost(snapshot: Snapshot, fact: BrokerFact) -> Iterator[tuple[Subscription, BrokerQueue]]:
    """Queues without a consumer of this process, by one view; messages may come to them later."""
    if not fact.complete or not fact.connections or not _at_home(snapshot, fact):
        return
    consumed = {consumer.queue for consumer in fact.consumers}
    for subscription in snapshot.subscriptions or _guessed(snapshot, fact):
        # Who does something else between two pops is slow, at most: RabbitMQ's consumers stay meanwhile, pops do not.
        if fact.kind == "redis" and (subscription.full is not False or not _rests(snapshot)):
            continue
        # Another program than Celery's worker may have several Consumers, and start and cancel them as it likes.
        own = subscription.queues if subscription.name.startswith("Celery") else subscription.active or ()
        for name in own:
            queue = fact.queue(name)
            if queue is not None and name not in consumed:
                yield subscription, queue


def _at_home(snapshot: Snapshot, fact: BrokerFact) -> bool:
    """The broker asked is the one that the worker consumes from, and not one to which it only publishes, or where it
    gets replies: the connection that its loop holds is known there; where that is not known, some consumer of it is.
    """
    peers = {connection.peer for connection in fact.connections}
    held = [amqp.local for amqp in snapshot.amqp if amqp.source == "memory" and amqp.local]
    if held and fact.kind != "redis" and fact.matched_by == "address":
        return any(local in peers for local in held)
    return bool(fact.consumers) or fact.kind == "redis"


def _guessed(snapshot: Snapshot, fact: BrokerFact) -> tuple[Subscription, ...]:
    """A Celery worker whose queues are not known: it has no consumer but for remote control, and a queue has none."""
    if snapshot.process.worker.kind != "celery-main" or fact.kind != "rabbitmq":
        return ()
    if any(not _is_own(consumer.queue) for consumer in fact.consumers):
        return ()
    alone = tuple(
        queue.name for queue in fact.queues if queue.consumers == 0 and queue.ready and not _is_own(queue.name)
    )
    return (Subscription("Celery's task consumer", alone, _GUESSED),) if alone else ()


def _is_own(queue: str) -> bool:
    return queue.endswith(_OWN_QUEUES) or queue.startswith(_OWN_PREFIXES)


def _others(fact: BrokerFact, queue: BrokerQueue) -> bool:
    """Somebody else consumes it."""
    return bool(queue.consumers)


def _held(fact: BrokerFact) -> tuple[tuple[BrokerChannel, BrokerQueue], ...]:
    """Channels that are full, with a queue of theirs in which more messages wait."""
    found = []
    for channel in fact.channels:
        own = [
            each for each in fact.consumers if (each.connection, each.channel) == (channel.connection, channel.number)
        ]
        limits = [limit for limit in (channel.prefetch, *(each.prefetch for each in own)) if limit]
        if not limits or not channel.unacked or channel.unacked < min(limits) or not fact.complete:
            continue
        queue = next((queue for each in own if (queue := fact.queue(each.queue)) is not None and queue.ready), None)
        if queue is not None:
            found.append((channel, queue))
    return tuple(found)


def _on_purpose(snapshot: Snapshot, channel: BrokerChannel, budgets: Budgets) -> bool:
    """Messages may be kept for later: by Celery for a rate limit or an ETA; by others for what nobody knows. And a
    channel on which something passes is full whenever work waits."""
    if channel.idle_s is None:
        return True
    if snapshot.process.worker.kind != "celery-main":
        return channel.idle_s < max(budgets.stuck_after_s, _KEPT_S)
    own = snapshot.subscriptions[:1]
    if channel.idle_s < budgets.owed_s or snapshot.process.worker.pool not in _POOLS or not own:
        return True
    return own[0].rate_limited is not False or own[0].prefetch != own[0].initial_prefetch


def _rests(snapshot: Snapshot) -> bool:
    """Its main thread waits for work."""
    purposes = {wait.thread.tid: wait.reading.purpose for wait in waits(snapshot)}
    return purposes.get(snapshot.process.pid) in _PARKED


def parked(snapshot: Snapshot) -> bool:
    """All its threads wait for work: a task that sleeps is work in hand. Threads without Python frames do not count."""
    known = {wait.thread.tid: wait.reading.purpose for wait in waits(snapshot)}
    return snapshot.python is not None and all(
        known.get(thread.tid) in _PARKED
        for thread in snapshot.threads
        if thread.state not in "ZX" and (snapshot.frames(thread.tid) or thread.tid == snapshot.process.pid)
    )


def _tags(snapshot: Snapshot, fact: BrokerFact) -> frozenset[str]:
    """Consumer tags that the client's objects have on a connection known to the broker, and the broker has not."""
    if fact.kind != "rabbitmq" or not fact.complete:
        return frozenset()
    by_peer = {connection.peer: connection.name for connection in fact.connections}
    there = {(consumer.connection, consumer.tag) for consumer in fact.consumers}
    return frozenset(
        tag
        for amqp in snapshot.amqp
        if amqp.source == "memory" and amqp.local in by_peer
        for channel in amqp.channels
        for tag in channel.consumers or ()
        if (by_peer[amqp.local], tag) not in there
    )
