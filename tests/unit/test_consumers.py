"""`consumer-lost` on literal facts, and its look-alikes; what brokers answer as facts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from stucktrace.collectors import broker_view, broker_view_found, broker_view_management, broker_view_redis
from stucktrace.diagnosis import consumers
from stucktrace.facts import (
    AmqpChannel,
    AmqpFact,
    BrokerChannel,
    BrokerConnection,
    BrokerConsumer,
    BrokerFact,
    BrokerQueue,
    Subscription,
    WorkerFact,
)

from tests.unit.snapshots import NOW, SITE, call, codes, epoll, process, snapshot, tcp, thread, verdict, watch

LOOP = [
    f"poll {SITE}kombu/utils/eventio.py:83",
    f"create_loop {SITE}kombu/asynchronous/hub.py:406",
    f"asynloop {SITE}celery/worker/loops.py:130",
    "<module> /usr/bin/celery:8",
]
OURS = BrokerConnection("10.0.0.1:40007 -> 10.0.0.2:5672", "10.0.0.1:40007", "/")
MINE = Subscription("Celery's task consumer", ("orders",), "-Q on its command line", ("orders",), 8, 8, None, False)
PIDBOX = BrokerConsumer("w@h.celery.pidbox", "/", OURS.name, 2)
CONSUMER = BrokerConsumer("orders", "/", OURS.name, 1, "None2", 0, True)


def view(*consumed: BrokerConsumer, ready: int | None = 5, **more: Any) -> BrokerFact:
    values: dict[str, Any] = {
        "connections": (OURS,),
        "matched_by": "address",
        "own_connections": 1,
        "known_connections": 9,
        "consumers": (PIDBOX, *consumed),
        "queues": (BrokerQueue("orders", "/", ready, 0, more.pop("others", 0) + len(consumed)),),
    }
    return BrokerFact("rabbitmq", "management API", "http://u@10.0.0.2:15672", NOW, **(values | more))


def worker(now: BrokerFact | None, before: BrokerFact | None, *subscriptions: Subscription, **more: Any):
    more.setdefault("stacks", {100: LOOP})
    return snapshot(
        thread(100, call("epoll_wait", 4, timeout_s=1.0, endless=False), blocked_s=0.5),
        worker=more.pop("worker", WorkerFact("celery-main", pool="prefork")),
        sockets=[tcp(7, last_receive_s=1.0)],
        epolls=[epoll(4, watch(7))],
        subscriptions=subscriptions or (MINE,),
        broker=now,
        broker_before=None if before is None else replace(before, time=NOW - 6),
        **more,
    )


def test_messages_and_no_consumer_twice():
    found = verdict(worker(view(), view()))
    assert (found.code, found.confidence, found.subject) == ("consumer-lost", "proven", "orders")
    assert "5 messages wait in orders" in found.summary and "believes that it still has one" in found.summary
    cancelled = verdict(worker(view(), view(), replace(MINE, active=())))
    assert "it was cancelled" in cancelled.summary
    assert any("add_consumer orders" in now.do for now in cancelled.now)
    assert "could not be read" in verdict(worker(view(), view(), replace(MINE, active=None))).summary


def test_a_program_cancels_its_own_consumers():
    """Only what its object still believes in is lost; Celery's worker is told by others to cancel."""
    own = Subscription("a kombu Consumer", ("orders",), "its Consumer object", ("orders",))
    python = WorkerFact("python")
    assert verdict(worker(view(), view(), own, worker=python)).code == "consumer-lost"
    for active in ((), None):
        assert "consumer-lost" not in codes(worker(view(), view(), replace(own, active=active), worker=python))


@pytest.mark.parametrize(
    "now, before",
    [
        (view(CONSUMER), view(CONSUMER)),  # busy or not, its consumer is there
        (view(), view(CONSUMER)),  # it may be about to subscribe again
        (view(CONSUMER), view()),  # it has
        (view(), None),  # read once
        (view(ready=0), view(ready=0)),  # nothing waits
        (view(ready=None), view(ready=None)),  # nobody knows
        (view(complete=False), view()),
        (view(), view(complete=False)),
        (view(connections=(), matched_by=""), view(connections=(), matched_by="")),  # NAT
        (view(), view(connections=(replace(OURS, name="another"),))),  # it connected anew in between
        (view(queues=()), view(queues=())),  # not declared there
        (None, None),
    ],
)
def test_healthy_views(now, before):
    assert codes(worker(now, before)) == [("idle", "likely")]


def test_a_further_connection():
    """A worker opens one to answer remote control; it is listed a little later."""
    more = view(connections=(OURS, replace(OURS, name="for replies", peer="10.0.0.1:40009")))
    assert verdict(worker(more, view())).confidence == "proven"
    assert codes(worker(view(), more)) == [("idle", "likely")]


def test_less_sure():
    others = verdict(worker(view(others=2), view(others=2)))
    assert (others.confidence, others.severity) == ("likely", "warning") and "only 2 others" in others.summary
    guessed = view(matched_by="client properties")
    assert verdict(worker(guessed, guessed)).confidence == "likely"


def test_a_broker_to_which_it_only_publishes():
    """It has a queue of that name too."""
    elsewhere = view(consumers=())
    facts = worker(elsewhere, elsewhere)
    assert codes(facts) == [("idle", "likely")]
    loop = AmqpFact("10.0.0.1:40007", "10.0.0.2:5672", "memory")
    assert verdict(replace(facts, amqp=(loop,))).confidence == "proven"
    other = (replace(loop, local="10.0.0.1:40008"),)
    assert codes(replace(facts, amqp=other)) == [("idle", "likely")]
    # It gets replies there: its consumer of them is no sign that it should have the other one.
    assert codes(replace(worker(view(), view()), amqp=other)) == [("idle", "likely")]


def test_a_worker_in_its_shutdown_has_no_consumer():
    stopping = [f"wait {SITE}billiard/popen_fork.py:20", f"stop {SITE}celery/worker/worker.py:300", LOOP[-1]]
    assert "consumer-lost" not in dict(codes(worker(view(), view(), stacks={100: stopping})))


def test_queues_that_are_not_known():
    """Nothing says what it is there for: it has no consumer at all, and a queue with messages has none either."""
    facts = replace(worker(view(), view()), subscriptions=())
    assert verdict(facts).confidence == "likely" and verdict(facts).code == "consumer-lost"
    assert codes(replace(facts, broker=view(others=1), broker_before=view(others=1))) == [("idle", "likely")]
    elsewhere = BrokerConsumer("another", "/", OURS.name, 1)
    assert codes(replace(facts, broker=view(elsewhere), broker_before=view(elsewhere))) == [("idle", "likely")]


def test_redis_a_full_worker_does_not_pop():
    redis = replace(view(consumers=()), kind="redis", source="CLIENT LIST")
    held = {0: "consumer-lost", 7: "consumer-lost", 8: "idle", None: "idle"}
    for number, code in held.items():
        assert verdict(worker(redis, redis, replace(MINE, held=number))).code == code, number
    assert verdict(worker(redis, redis, replace(MINE, held=3, prefetch=0))).code == "consumer-lost"
    busy = worker(redis, redis, replace(MINE, held=0), stacks={100: [f"sleep {SITE}own_step.py:7", *LOOP[1:]]})
    assert "consumer-lost" not in {code for code, _ in codes(busy)}  # it will pop when that is done


def test_deliveries_that_nobody_works_on():
    full = BrokerChannel(OURS.name, 1, unacked=8, prefetch=8, consumers=1, idle_s=20.0)
    now = view(CONSUMER, channels=(full,))
    found = verdict(worker(now, now))
    assert (found.code, found.confidence) == ("consumer-lost", "likely")
    assert "8 unacknowledged deliveries" in found.summary
    fewer = view(CONSUMER, channels=(replace(full, unacked=7),))
    for look_alike in (
        worker(view(CONSUMER, channels=(replace(full, idle_s=1.0),)), now),  # deliveries go on
        worker(view(CONSUMER, channels=(replace(full, idle_s=None),)), now),  # rabbitmqctl
        worker(replace(now, busy=(200,)), now),  # a child works
        worker(now, fewer),  # it moves
        worker(fewer, fewer),
        worker(view(CONSUMER, ready=0, channels=(full,)), now),
        worker(now, now, replace(MINE, rate_limited=True)),
        worker(now, now, replace(MINE, prefetch=12)),  # tasks with an ETA
        worker(now, now, worker=WorkerFact("celery-main", pool="threads")),  # a task may sleep in a thread
        worker(now, now, stacks={100: [f"sleep {SITE}x.py:1", f"trace_task {SITE}celery/app/trace.py:4", *LOOP]}),
        worker(now, now, worker="python"),  # nothing is known of how long
    ):
        assert codes(look_alike)[0][0] == "idle"
    quiet = view(CONSUMER, channels=(replace(full, idle_s=1000.0),))
    assert verdict(worker(quiet, quiet, worker="python")).code == "consumer-lost"


def test_a_tag_that_the_broker_does_not_have():
    other = BrokerQueue("orders", "/", 5, 0, 0)
    now = view(queues=(other,))
    believes = AmqpFact("10.0.0.1:40007", "10.0.0.2:5672", "memory", channels=(AmqpChannel(1, consumers=("ctag1",)),))
    facts = replace(worker(now, now, worker="python"), subscriptions=(), amqp=(believes,))
    assert verdict(facts).code == "consumer-lost" and verdict(facts).confidence == "likely"
    known = view(BrokerConsumer("x", "/", OURS.name, 1, "ctag1"), queues=(other,))
    assert verdict(replace(facts, broker=known, broker_before=known)).code == "idle"


def test_the_note_without_a_view():
    assert "broker" not in verdict(worker(None, None)).summary
    note = verdict(worker(None, None, replace(MINE, active=())))
    assert "no consumer for orders" in note.summary and "--broker" in note.later[0].do
    # With a heartbeat such a silence is a verdict of its own.
    beatless = AmqpFact("10.0.0.1:40007", "10.0.0.2:5672", "memory", heartbeat_s=0.0)
    quiet = replace(worker(None, None), amqp=(beatless,), sockets=(tcp(7, last_receive_s=121.0),))
    found = verdict(quiet)
    assert found.code == "idle" and "only the broker knows" in found.summary
    assert "only the broker" not in verdict(replace(quiet, sockets=(tcp(7, last_receive_s=119.0),))).summary


def test_a_second_view_only_where_the_first_shows_something():
    assert consumers.suspicious(worker(view(), None))
    assert consumers.suspicious(worker(view(ready=0), None))
    assert not consumers.suspicious(worker(view(CONSUMER), None))
    assert not consumers.suspicious(worker(None, None))


CLIENTS = """\
id=7 addr=10.0.0.1:40007 laddr=10.0.0.2:6379 fd=8 name= age=9 idle=1 flags=b db=2 cmd=brpop user=default lib-name=redis-py
id=8 addr=[fe80::1]:40008 laddr=10.0.0.2:6379 fd=9 name=x=y age=9 idle=30 flags=N db=0 cmd=brpop user=default
id=9 addr=10.0.0.1:40009 fd=9 flags=N idle=0 db=0 cmd=client|list user=default"""


def test_the_lines_of_client_list():
    first, second, third = map(broker_view_redis.connection, CLIENTS.splitlines())
    assert (first.peer, first.vhost, first.blocking, first.idle_s) == ("10.0.0.1:40007", "2", True, 1.0)
    assert (broker_view_redis.pops(first), broker_view_redis.pops(second), third.command) == (True, False, "client")
    assert broker_view_redis.pops(replace(second, idle_s=2.0))
    assert broker_view_redis.keys("celery")[:2] == ("celery", "celery\x06\x161")


def test_connections_of_the_process():
    known = [OURS, replace(OURS, name="b", peer="10.9.9.9:1", client_pid=77)]
    assert broker_view.own(known, ("10.0.0.1:40007",), 77) == ((OURS,), "address")
    assert broker_view.own(known, ("10.0.0.1:5",), 77) == ((known[1],), "client properties")
    assert broker_view.own(known, ("10.0.0.1:5",), 78) == ((), "")
    inbound = tcp(9, direction="in")
    assert broker_view.outbound([tcp(7), inbound, tcp(8, state="LISTEN")]) == ("10.0.0.1:40007",)


@pytest.mark.parametrize(
    "given, peer",
    [
        ([10, 0, 0, 1], "10.0.0.1:5"),
        ([0, 0, 0, 0, 0, 65535, 0x0A00, 1], "10.0.0.1:5"),
        ([0xFE80, 0, 0, 0, 0, 0, 0, 1], "[fe80::1]:5"),
        ("::ffff:10.0.0.1", "10.0.0.1:5"),
    ],
)
def test_addresses_as_brokers_write_them(given, peer):
    row = {"name": "n", "peer_host": given, "peer_port": 5, "client_properties": [["pid", "signedint", 7]]}
    found = broker_view_found._connection(row)
    assert (found.peer, found.client_pid) == (peer, 7)


class Answers:
    """The management API's answers to the calls in turn."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def get(self, what: str) -> Any:
        return json.loads(json.dumps(self.answers[what.partition("?")[0].partition("/")[0]]))


def test_the_management_api(monkeypatch):
    details = {"name": OURS.name, "peer_host": "10.0.0.1", "peer_port": 40007}
    channel = {"number": 1, "connection_details": details, "messages_unacknowledged": 3, "prefetch_count": 0}
    consumer = {
        "queue": {"name": "orders", "vhost": "/"},
        "channel_details": {"connection_name": OURS.name, "number": 1},
        "consumer_tag": "None2",
        "ack_required": True,
    }
    stranger = {**consumer, "channel_details": {"connection_name": "another", "number": 1}}
    api = Answers(
        connections=[{"name": OURS.name, "peer_host": "10.0.0.1", "peer_port": 40007, "vhost": "/"}, {"odd": 1}],
        channels=[{**channel, "global_prefetch_count": 8}, {"number": 2, "connection_details": {"name": "another"}}],
        consumers=[consumer, stranger],
        queues=[{"name": "orders", "messages_ready": 5}, {"name": "empty", "messages_ready": 0}],
    )
    monkeypatch.setattr(broker_view_management, "_Api", lambda url: api)
    found = broker_view_management.read("http://x", process(), ("10.0.0.1:40007",), ("orders",))  # type: ignore[arg-type]
    assert found.connections == (OURS,) and found.known_connections == 2 and found.complete
    assert [(each.number, each.unacked, each.prefetch) for each in found.channels] == [(1, 3, 8)]
    assert [each.queue for each in found.consumers] == ["orders"]
    assert [(each.name, each.ready) for each in found.queues] == [("orders", 5)]
    # Statistics that are switched off are not "no messages".
    api.answers["queues"] = [{"name": "orders"}]
    assert not broker_view_management.read("http://x", process(), ("10.0.0.1:40007",), ("orders",)).complete  # type: ignore[arg-type]
