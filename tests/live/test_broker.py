"""What a broker says before it falls silent, read from the memory of real clients: a resource alarm, a closed channel."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.harness import command, kernel, targets
from tests.live.conftest import ENGINES

pytestmark = pytest.mark.xdist_group("rabbitmq")
OVERDUE_S = 6.0


def wait_overdue(pid: int) -> None:
    """It sleeps in its receive for longer than a confirm may take."""
    kernel.wait_for_call(pid, "recvfrom")
    kernel.wait_until(lambda: kernel.in_call(pid, "recvfrom") and kernel.asleep_s(pid) > OVERDUE_S, "an overdue answer")


def layers(report: command.Report) -> dict[str, str]:
    assert [layer["layer"] for layer in report["amqp"]["layers"]] == [0, 1, 2, 3, 4], report.text()
    return {layer["name"]: " ".join(layer["lines"]) for layer in report["amqp"]["layers"]}


@pytest.mark.timeout(300)
def test_a_resource_alarm(rabbitmq):
    """Each publisher that is owed an answer is blocked by the broker; a consumer on a blocked connection is idle; and
    who was blocked before is not, when the broker is silent for another reason."""
    with ExitStack() as stack:
        client = stack.enter_context(rabbitmq.client())

        def start(name):
            return stack.enter_context(targets.start("amqp_publishers.py", name, client.url, netns=client.pair.here))

        celery = stack.enter_context(targets.start("amqp_publisher.py", client.url, "default", netns=client.pair.here))
        plain, pika, timed, storm, loop, gave_up, consumer = map(
            start, ("py_amqp", "pika", "pika_timed", "amqpstorm", "aio_pika", "py_amqp_gave_up", "consumer")
        )
        own = start("own_confirms")
        found: dict[str, str] = {}
        with rabbitmq.alarm():
            for target in (celery, plain, pika, timed, storm, loop, gave_up, consumer):
                target.go()
            wait_overdue(plain.pid)
            wait_overdue(celery.pid)
            kernel.wait_until(lambda: "blocked" in consumer.log(), "a blocked consumer")
            kernel.wait_until(lambda: "gave up" in gave_up.log(), "a publisher that gave up")
            looks = (
                (celery, "auto"),
                (plain, "none"),
                (pika, "auto"),
                (timed, "none"),
                (storm, "auto"),
                (loop, "none"),
            )
            for target, engine in looks:
                sure = None if target is pika else "proven"
                report = command.check(target.pid, "broker-blocked", "--engine", engine, confidence=sure)
                assert f"{client.address}:{client.port}" in report.summary, report.summary
                assert report.evidence("amqp.blocked") == "connection.blocked", report.text()
                assert "alarms" in report.verdict["remedy"]["now"][0]["do"], report.text()
                found = layers(report) if target is celery else found
            assert "confirm on channel 1" in found["call"] and "connection.blocked" in found["call"], found
            assert "acknowledged" in found["socket"] and "blocked" in found["broker"], found
            assert "heartbeat 0" in found["settings"] and "TCP_USER_TIMEOUT 1 s" in found["settings"], found
            command.check(consumer.pid, "idle", "--stuck-after", 1)

        kernel.wait_until(lambda: "unblocked" in gave_up.log(), "the end of the block")
        kernel.wait_until(lambda: "published" in celery.log(), "the publish that was held back")
        kernel.wait_for_call(plain.pid, "futex")
        assert command.explain(plain.pid).verdict["class"] == "healthy"
        with rabbitmq.stopped():
            gave_up.go()
            own.go()
            wait_overdue(gave_up.pid)
            wait_overdue(own.pid)
            report = command.check(gave_up.pid, "peer-silent")
            assert "stopped" in layers(report)["broker"], report.text()
            report = command.check(own.pid, "peer-silent", "--probe")
            assert report.socket()["probe"]["answer"] == "alive", report.text()


@pytest.mark.timeout(300)
def test_a_channel_that_the_broker_closed(rabbitmq):
    """The wait for its confirm has no end; a channel that was opened again before the publish is nothing of the kind."""
    with rabbitmq.client() as client, ExitStack() as stack:
        closed, again = (
            stack.enter_context(targets.start("amqp_publishers.py", name, client.url, netns=client.pair.here))
            for name in ("closed", "opened_again")
        )
        kernel.wait_until(lambda: "NOT_FOUND" in closed.log(), "the error of the channel")
        wait_overdue(closed.pid)
        for engine in ENGINES:
            report = command.check(closed.pid, "channel-closed", "--engine", engine, confidence="proven")
            assert "channel 1" in report.summary and "confirm" in report.summary, report.summary
            assert report.evidence("amqp.channel") == 1, report.text()
        command.check(again.pid, "idle", "--stuck-after", 1)
        assert "confirm on channel 1" in layers(report)["call"], report.text()
