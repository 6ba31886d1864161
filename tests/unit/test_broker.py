"""What the last frames of an AMQP connection mean, on literal facts; and the answer layer by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.diagnosis import amqp_layers, broker, configuration, diagnose
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets
from stucktrace.facts import (
    AmqpChannel,
    AmqpFact,
    AmqpMethod,
    Keepalive,
    SettingFact,
    Snapshot,
    WorkerFact,
)
from stucktrace.facts.broker import BrokerConnection, BrokerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import black_hole, call, peer, snapshot, tcp, thread

BUDGETS = Budgets()
LOCAL, REMOTE = "10.0.0.1:40007", "10.0.0.2:5672"
BLOCKED = AmqpMethod("connection.blocked")
ASSUMED = "the last method came during this wait"
FACT = AmqpFact(
    LOCAL,
    REMOTE,
    "memory",
    client="py-amqp",
    fd=7,
    heartbeat_s=0.0,
    channels=(AmqpChannel(1, confirms=True, is_open=True),),
    waits_for="confirm",
    waiting_channel=1,
    waiting_tid=100,
)


def publisher(fact: AmqpFact = FACT, age_s: float = 35.0, stack=k.CONFIRM, **socket) -> Snapshot:  # type: ignore[no-untyped-def]
    values = {"last_send_s": age_s, "last_receive_s": age_s, "last_ack_s": age_s, **socket}
    return snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=age_s), stacks={100: stack}, sockets=[tcp(**values)], amqp=(fact,)
    )


def consumer(fact: AmqpFact, **socket) -> Snapshot:  # type: ignore[no-untyped-def]
    fact = replace(fact, waits_for="events", waiting_channel=None)
    return publisher(fact, stack=k.KOMBU_CONSUMER, **socket)


def test_a_blocked_publisher() -> None:
    snap = publisher(replace(FACT, blocked=BLOCKED))
    verdict = diagnose(snap, BUDGETS).verdict
    assert (verdict.code, verdict.confidence) == ("broker-blocked", PROVEN)
    for word in ("35 s", "basic_publish_confirm", REMOTE, "resource alarm"):
        assert word in verdict.summary
    assert "rabbitmq-diagnostics alarms" in verdict.now[0].do
    assert "read_timeout" in verdict.later[0].do
    assert "peer-silent" not in {finding.code for finding in diagnose(snap, BUDGETS).findings}


def test_the_reason_of_the_wire_is_said() -> None:
    fact = replace(FACT, source="wire", waits_for="", blocked=AmqpMethod("connection.blocked", text="low on disk"))
    (finding,) = broker.broker_blocked(publisher(fact), BUDGETS)
    assert finding.confidence == PROVEN and "low on disk" in finding.summary


@pytest.mark.parametrize(
    ("heartbeat_s", "received_s", "confidence"),
    [
        (0.0, 34.9, PROVEN),  # no heartbeat: what came after the publish was this method
        (60.0, 34.9, LIKELY),  # it may have been a heartbeat
        (None, 34.9, LIKELY),
        (60.0, 12.0, LIKELY),
        (0.0, 36.0, None),  # nothing came since the publish: the block is an older one
        (60.0, 50.0, None),
    ],
)
def test_the_last_method_is_as_new_as_the_last_data(heartbeat_s, received_s, confidence) -> None:  # type: ignore[no-untyped-def]
    fact = replace(FACT, blocked=BLOCKED, blocked_assumes=ASSUMED, last_in=BLOCKED, heartbeat_s=heartbeat_s)
    snap = publisher(fact, last_receive_s=received_s)
    found = list(broker.broker_blocked(snap, BUDGETS))
    assert [finding.confidence for finding in found] == ([confidence] if confidence else [])
    assert diagnose(snap, BUDGETS).verdict.code == ("broker-blocked" if confidence else "peer-silent")
    if confidence == LIKELY:
        assert ASSUMED in found[0].summary


def test_counts_of_the_whole_process_prove_nothing() -> None:
    fact = replace(FACT, blocked=BLOCKED, blocked_assumes="it was this connection")
    (finding,) = broker.broker_blocked(publisher(fact, last_receive_s=34.9), BUDGETS)
    assert finding.confidence == LIKELY and "it was this connection" in finding.summary


def test_a_polling_client_that_waits_for_a_slow_answer_is_not_blocked_by_counts() -> None:
    """They may be of a connection that ended while it was blocked."""
    values = {"last_send_s": 3.0, "last_receive_s": 1.0, "last_ack_s": 1.0}
    for last, codes in ((BLOCKED, ["broker-blocked"]), (None, [])):
        fact = replace(FACT, client="pika", blocked=BLOCKED, blocked_assumes="x", last_in=last, heartbeat_s=2.0)
        sleeper = thread(100, call("poll", 7, timeout_s=1.0, endless=False), blocked_s=0.5)
        polls = replace(publisher(fact, **values), threads=(sleeper,))
        assert [finding.code for finding in broker.broker_blocked(polls, BUDGETS)] == codes
        # One that keeps by itself since when it waits: a short alarm is no reason for alarm.
        known = replace(polls, amqp=(replace(fact, waiting_s=3.0),))
        assert list(broker.broker_blocked(known, BUDGETS)) == []


def test_a_heartbeat_that_comes_in_does_not_make_the_wait_young() -> None:
    fact = replace(FACT, blocked=BLOCKED)
    values = {"last_send_s": 90.0, "last_receive_s": 0.5, "last_ack_s": 0.5}
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=0.5), stacks={100: k.CONFIRM}, sockets=[tcp(**values)], amqp=(fact,)
    )
    (finding,) = broker.broker_blocked(snap, BUDGETS)
    assert "90 s" in finding.summary


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("nothing is blocked", publisher()),
        ("a consumer on a blocked connection", consumer(replace(FACT, blocked=BLOCKED))),
        ("young", publisher(replace(FACT, blocked=BLOCKED), age_s=2.0)),
        (
            "another connection is blocked",
            publisher(replace(FACT, blocked=BLOCKED, local="10.0.0.1:1", waiting_tid=101)),
        ),
    ],
)
def test_not_blocked(what: str, snap: Snapshot) -> None:
    assert list(broker.broker_blocked(snap, BUDGETS)) == [], what


def seen_by_the_broker(state: str, peer_: str = LOCAL, others: int = 1) -> BrokerFact:
    own = BrokerConnection(f"{peer_} -> {REMOTE}", peer_, state=state)
    return BrokerFact("rabbitmq", "rabbitmqctl", "rabbitmqctl", 0.0, (own,), own_connections=others)


def test_the_broker_itself_says_so() -> None:
    """Of a client whose memory tells nothing."""
    bare = replace(publisher(), amqp=())
    verdict = diagnose(replace(bare, broker=seen_by_the_broker("blocked")), BUDGETS).verdict
    assert (verdict.code, verdict.confidence) == ("broker-blocked", PROVEN)
    assert verdict.evidence[2].source == "rabbitmqctl"
    translated = replace(bare, broker=seen_by_the_broker("blocked", "192.168.0.9:7", others=1))
    assert diagnose(translated, BUDGETS).verdict.code == "broker-blocked", "the only one on both sides"
    for other in (
        seen_by_the_broker("blocking"),
        seen_by_the_broker("running"),
        seen_by_the_broker("blocked", "192.168.0.9:7", others=2),
    ):
        snap = replace(bare, broker=other)
        verdict = diagnose(snap, BUDGETS).verdict
        assert verdict.code == "peer-silent"
        text = " ".join(amqp_layers.layers(snap, verdict)[2].lines)
        assert ("does not have" in text) == (other.own_connections == 2)
    idle = replace(consumer(FACT), broker=seen_by_the_broker("blocked"))
    assert diagnose(idle, BUDGETS).verdict.code == "idle"


def test_a_client_that_sleeps_between_two_looks() -> None:
    """AMQPStorm's publisher has no socket of its own: its object says for how long it waits."""
    fact = replace(FACT, client="amqpstorm", blocked=BLOCKED, waiting_s=41.0, heartbeat_s=60.0)
    sleeps = call("clock_nanosleep", endless=False, timeout_s=0.01)
    stack = ["_wait_for_request amqpstorm/rpc.py:141", "publish amqpstorm/basic.py:220", "<module> /app/main.py:3"]
    snap = snapshot(thread(100, sleeps, blocked_s=0.003), stacks={100: stack}, sockets=[tcp()], amqp=(fact,))
    verdict = diagnose(snap, BUDGETS).verdict
    assert verdict.code == "broker-blocked" and "41 s" in verdict.summary and "rpc_timeout" in verdict.later[0].do


def test_a_channel_that_was_opened_anew_below_the_wait() -> None:
    channels = (AmqpChannel(1, confirms=False, is_open=True), AmqpChannel(2, confirms=True, is_open=True))
    verdict = diagnose(publisher(replace(FACT, channels=channels)), BUDGETS).verdict
    assert (verdict.code, verdict.confidence) == ("channel-closed", PROVEN)
    assert "channel 1" in verdict.summary
    assert list(broker.channel_closed(publisher(replace(FACT, channels=channels, waiting_channel=2)), BUDGETS)) == []
    assert list(broker.channel_closed(publisher(replace(FACT, channels=channels), age_s=1.0), BUDGETS)) == []


def test_a_channel_close_on_the_wire() -> None:
    close = AmqpMethod("channel.close", 1, 12.0, 404, "NOT_FOUND - no exchange 'x'", "basic.publish")
    channel = AmqpChannel(1, unconfirmed=1, closed=close, closed_by="broker")
    fact = replace(FACT, source="wire", waits_for="", waiting_channel=None, channels=(channel,))
    (finding,) = broker.channel_closed(publisher(fact), BUDGETS)
    assert "NOT_FOUND" in finding.summary and "404" in finding.summary
    by_client = replace(fact, channels=(replace(channel, closed_by="client"),))
    assert list(broker.channel_closed(publisher(by_client), BUDGETS)) == []
    settled = replace(fact, channels=(replace(channel, unconfirmed=0),))
    assert list(broker.channel_closed(publisher(settled), BUDGETS)) == []


ARMED = Keepalive(True, 30.0, 5.0, 3, 0)


@pytest.mark.parametrize(
    ("what", "heartbeat_s", "socket", "expected"),
    [
        ("silence, and nobody knows more", 10.0, {"last_receive_s": 25.0, "last_ack_s": 25.0}, ("half-open", LIKELY)),
        ("the peer's kernel answers", 10.0, {"last_receive_s": 25.0, "last_ack_s": 4.0}, ("peer-silent", PROVEN)),
        ("the flow is lost", 10.0, {"last_receive_s": 25.0, "conntrack": "absent"}, ("half-open", PROVEN)),
        ("two intervals are not over", 10.0, {"last_receive_s": 19.0}, None),
        ("a busy broker", 1.0, {"last_receive_s": 4.0}, None),
        ("it does not read", 10.0, {"last_receive_s": 25.0, "receive_bytes": 900_000}, None),
        ("no heartbeat", 0.0, {"last_receive_s": 4000.0}, None),
        ("not known", None, {"last_receive_s": 4000.0}, None),
        ("the broker is on this node and stands still", 10.0, {"last_receive_s": 25.0, "peer": peer()},
         ("peer-silent", PROVEN)),
    ],
)  # fmt: skip
def test_heartbeats_that_do_not_come(what, heartbeat_s, socket, expected) -> None:  # type: ignore[no-untyped-def]
    snap = consumer(replace(FACT, heartbeat_s=heartbeat_s), **socket)
    found = [(finding.code, finding.confidence) for finding in broker.heartbeats_missing(snap, BUDGETS)]
    assert found == ([expected] if expected else []), what
    verdict = diagnose(snap, BUDGETS).verdict
    assert verdict.code == (expected[0] if expected else "idle"), what


def test_an_outage_that_tcp_sees_is_said_once() -> None:
    fact = replace(FACT, heartbeat_s=10.0)
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=60.0), stacks={100: k.CONFIRM}, sockets=[black_hole(7)], amqp=(fact,)
    )
    assert list(broker.heartbeats_missing(snap, BUDGETS)) == []
    assert diagnose(snap, BUDGETS).verdict.code == "half-open"


def test_no_heartbeat_by_the_value_that_was_agreed_on() -> None:
    young = {"last_receive_s": 3.0, "last_send_s": 3.0}
    (known,) = configuration.no_heartbeat(consumer(FACT, **young), BUDGETS)
    assert known.confidence == PROVEN and "is 0" in known.summary
    assert list(configuration.no_heartbeat(consumer(replace(FACT, heartbeat_s=60.0)), BUDGETS)) == []
    unknown = replace(FACT, heartbeat_s=None)
    assert list(configuration.no_heartbeat(consumer(unknown, **young), BUDGETS)) == []
    (guessed,) = configuration.no_heartbeat(consumer(unknown, last_receive_s=400.0), BUDGETS)
    assert guessed.confidence == LIKELY


def test_layer_by_layer() -> None:
    setting = SettingFact("celery", "broker_transport_options.heartbeat", None, "default", in_force=True)
    secret = SettingFact("celery", "broker_url", "amqp://broker", "default", in_force=True)
    snap = publisher(replace(FACT, blocked=BLOCKED, last_in=BLOCKED, confirm_timeout_known=True))
    worker = WorkerFact("gunicorn-worker", timeout_s=30.0)
    snap = replace(snap, settings=(setting, secret), process=replace(snap.process, worker=worker))
    found = amqp_layers.layers(snap, diagnose(snap, BUDGETS).verdict)
    assert [(layer.number, layer.name) for layer in found] == list(enumerate(amqp_layers.NAMES))
    call_, socket, broker_, conntrack, settings = (" ".join(layer.lines) for layer in found)
    assert "confirm on channel 1, without a limit" in call_ and "connection.blocked" in call_
    assert "acknowledged" in socket and REMOTE in socket
    assert "resource alarm" in broker_ and "not asked for" in broker_
    assert "stucktrace conntrack" in conntrack
    assert (
        "heartbeat 0" in settings and "30 s" in settings and "broker_transport_options.heartbeat: not set" in settings
    )
    assert "amqp://broker" not in settings


def test_no_layers_for_what_is_not_about_a_broker() -> None:
    idle = consumer(FACT)
    assert amqp_layers.layers(idle, diagnose(idle, BUDGETS).verdict) == ()
    other = snapshot(thread(100, "recvfrom", fd=7, blocked_s=60.0), stacks={100: k.REQUESTS}, sockets=[black_hole(7)])
    assert amqp_layers.layers(other, diagnose(other, BUDGETS).verdict) == ()
