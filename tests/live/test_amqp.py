"""Publishers and consumers on a real RabbitMQ whose network goes away, or which stands still."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from tests.harness import command, kernel, targets
from tests.live.conftest import ENGINES

pytestmark = pytest.mark.xdist_group("rabbitmq")
PROVEN_AFTER_S = 30.0


def half_open(pid: int, engine: str) -> command.Report:
    """A half-open verdict whose confidence follows from its own figure."""
    report = command.check(pid, "half-open", "--engine", engine)
    outage_s = report.outage_s()
    assert report.confidence == ("proven" if outage_s >= PROVEN_AFTER_S else "likely"), report.text()
    return report


@pytest.mark.timeout(600)
def test_a_cut_publisher_over_time(rabbitmq):
    """At 10 s it may heal; at 31 s it is proven; one that heals at 10 s is healthy; the defaults fail by themselves."""
    with ExitStack() as stack:
        staying, healing, default = (stack.enter_context(rabbitmq.client()) for _ in range(3))

        def start(program, client, *args):
            return stack.enter_context(targets.start(program, *args, netns=client.pair.here))

        stays = start("amqp_publisher.py", staying, staying.url, 0)
        heals = start("amqp_publisher.py", healing, healing.url, 0)
        fails = start("amqp_publisher.py", default, default.url, "default")
        calm = stack.enter_context(rabbitmq.client())
        consumers = [start("clients.py", calm, f"{library}_consumer", calm.url) for library in ("kombu", "pika")]
        for client in (staying, healing, default):
            client.cut()
        for target in (stays, heals, fails):
            target.go()

        # With TCP_USER_TIMEOUT 1000 ms the wait ends by itself: whenever one looks, it is not stuck.
        while "failed" not in fails.log():
            assert command.explain(fails.pid).verdict["class"] == "healthy"
        assert "published" not in fails.log()

        for client, target in ((healing, heals), (staying, stays)):
            kernel.wait_for_unacked(f"{client.address}:{client.port}", 10, client.pair.here)
            for engine in ENGINES:
                report = half_open(target.pid, engine)
                assert report.outage_s() >= 9, report.text()
                if report.confidence == "likely":
                    assert "heal" in report.summary and "gives up" in report.summary, report.summary
                if target is heals:
                    assert report.confidence == "likely", report.text()
                peer = f"{client.address}:{client.port}"
                assert peer in report.summary and "basic_publish_confirm" in report.summary, report.summary
                assert re.search(r"\d s\b", report.summary), report.summary
                assert report.evidence("unacked") >= 1 and report.evidence("backoff") >= 1, report.text()
                assert report.evidence("last_ack_s") >= 9, report.text()
                assert "TCP_USER_TIMEOUT" in str(report.verdict["remedy"]["later"]), report.text()
                assert report.verdict["remedy"]["now"], report.text()
            if target is heals:
                healing.heal()

        kernel.wait_until(lambda: "published" in heals.log(), "the publish that healed")
        kernel.wait_for_call(heals.pid, "futex")
        for engine in ENGINES:
            assert command.explain(heals.pid, "--engine", engine).verdict["class"] == "healthy"

        kernel.wait_for_unacked(f"{staying.address}:{staying.port}", 32, staying.pair.here)
        for engine in ENGINES:
            report = half_open(stays.pid, engine)
            assert report.confidence == "proven" and report.outage_s() >= PROVEN_AFTER_S, report.text()
            assert "basic_publish_confirm" in report.summary, report.summary

        # They have consumed nothing for longer than any budget.
        for consumer in consumers:
            for engine in ENGINES:
                command.check(consumer.pid, "idle", "--engine", engine, "--stuck-after", 1)


def test_a_broker_that_stands_still_is_not_half_open(rabbitmq):
    """Its kernel acknowledges, it does not answer: what it owes at once is peer-silent after 5 s."""
    with ExitStack() as stack:
        client = stack.enter_context(rabbitmq.client())
        waiting = [
            stack.enter_context(targets.start(program, client.url, *args, netns=client.pair.here))
            for program, args in (("amqp_publisher.py", (0,)), ("amqp_declarer.py", ()))
        ]
        with rabbitmq.stopped():
            for target in waiting:
                target.go()
                kernel.wait_for_call(target.pid, "recvfrom", "poll")
            for target in waiting:
                kernel.wait_until(lambda: kernel.asleep_s(target.pid) > 6, "6 s without an answer")
                for engine in ENGINES:
                    report = command.check(target.pid, "peer-silent", "--engine", engine)
                    assert f"{client.address}:{client.port}" in report.summary, report.summary
                    assert report.evidence("unacked") in (0, None), report.text()


def test_one_connection_in_two_processes(rabbitmq):
    with (
        rabbitmq.client() as client,
        targets.start("amqp_shared.py", client.url, netns=client.pair.here) as parent,
    ):
        children = [int(word) for word in parent.said.split()]
        for child in children:
            for engine in ENGINES:
                report = command.check(child, "shared-connection", "--engine", engine)
                other = next(pid for pid in children if pid != child)
                assert str(other) in report.summary + str(report.verdict["evidence"]), report.text()


def test_a_publisher_that_tries_again_and_again(engine):
    """The broker is not there: refused, slept, refused. That wait does not end by itself."""
    with targets.start("amqp_retry.py", "amqp://guest@127.0.0.1:9//") as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        report = command.check(target.pid, "connect-failing", "--engine", engine)
        assert "retry_over_time" in report.summary, report.summary
