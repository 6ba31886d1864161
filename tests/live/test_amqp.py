"""Real Celery, kombu and pika on a real RabbitMQ: cut off, healed, stopped, and merely idle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.harness import brokers, kernel, namespaces, targets
from tests.harness.brokers import Broker
from tests.harness.command import Report, check, explain

pytestmark = pytest.mark.xdist_group("rabbitmq")

ENGINES = ("auto", "none")


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[Broker]:
    with namespaces.pair() as pair, brokers.rabbitmq(pair) as broker:
        yield broker


@contextlib.contextmanager
def client(broker: Broker, name: str) -> Iterator[targets.Target]:
    with targets.start("clients.py", name, broker.url, netns=broker.pair.here) as target:
        yield target


def remote(broker: Broker) -> str:
    return f"{broker.address}:{broker.port}"


def silent_for(report: Report) -> float:
    """The longest time that any socket of the report has had unanswered data."""
    return max(socket["last_ack_s"] or 0 for socket in report["sockets"] if socket["unacked"])


def test_a_publisher_that_is_cut_off(rabbitmq: Broker) -> None:
    with client(rabbitmq, "celery_publisher") as publisher, client(rabbitmq, "celery_publisher_default") as default:
        try:
            rabbitmq.cut()
            kernel.wait_for_unacked(remote(rabbitmq), 10, rabbitmq.pair.here)
            for engine in ENGINES:
                report = check(publisher.pid, "half-open", "--engine", engine)
                assert report.confidence == ("likely" if silent_for(report) < 29 else report.confidence)
                assert "basic_publish_confirm" in report.summary
                assert remote(rabbitmq) in report.summary
                assert "heal" in report.summary
                assert "gives up" in report.summary
                assert report.evidence("unacked") >= 1
                assert report.evidence("backoff") >= 3
                assert report.evidence("last_ack_s") >= 10
                assert any("TCP_USER_TIMEOUT" in later["do"] for later in report.verdict["remedy"]["later"])
            # With its defaults the same client has failed by itself, and tried again.
            assert explain(default.pid).verdict["class"] in ("healthy", "stuck")
            assert "half-open" not in explain(default.pid).codes
        finally:
            rabbitmq.heal()
        kernel.wait_until(lambda: explain(publisher.pid).verdict["class"] == "healthy", "the publisher goes on", 120)


def test_an_outage_of_half_a_minute_is_proven(rabbitmq: Broker) -> None:
    with client(rabbitmq, "celery_publisher") as publisher:
        try:
            rabbitmq.cut()
            kernel.wait_for_unacked(remote(rabbitmq), 32, rabbitmq.pair.here)
            for engine in ENGINES:
                check(publisher.pid, "half-open", "--engine", engine, confidence="proven")
        finally:
            rabbitmq.heal()


def test_a_stopped_broker_is_silent_not_gone(rabbitmq: Broker) -> None:
    with client(rabbitmq, "celery_publisher") as publisher, rabbitmq.stopped():
        kernel.wait_until(lambda: explain(publisher.pid)["threads"][0]["blocked_s"] > 7, "a wait of 7 s", 120)
        for engine in ENGINES:
            report = check(publisher.pid, "peer-silent", "--engine", engine)
            assert "basic_publish_confirm" in report.summary


@pytest.mark.parametrize("name", ["kombu_consumer", "pika_consumer"])
def test_an_idle_consumer_is_idle(rabbitmq: Broker, name: str) -> None:
    with client(rabbitmq, name) as consumer:
        kernel.wait_for_call(consumer.pid, "recvfrom", "poll", "ppoll", "epoll_wait", "select", "pselect6")
        for engine in ENGINES:
            check(consumer.pid, "idle", "--engine", engine)
            check(consumer.pid, "idle", "--engine", engine, "--stuck-after", 1)


def test_two_processes_on_one_connection(rabbitmq: Broker) -> None:
    with targets.start("shared_connection.py", rabbitmq.url, netns=rabbitmq.pair.here) as parent:
        children = kernel.wait_for_children(parent.pid, 2)
        kernel.wait_until(lambda: all(kernel.in_call(child, "recvfrom") for child in children), "both children read")
        kernel.wait_until(
            lambda: all(explain(child)["threads"][0]["blocked_s"] > 6 for child in children), "both wait for good", 120
        )
        for engine in ENGINES:
            codes = [explain(child, "--engine", engine).code for child in children]
            assert "shared-connection" in codes, codes
