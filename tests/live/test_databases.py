"""Real Redis and PostgreSQL clients: idle for any time, slow inside and past their budget, cut off, silent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.harness import kernel, targets
from tests.harness.brokers import Broker
from tests.harness.command import Report, check, explain
from tests.live.conftest import ENGINES

on_redis = pytest.mark.xdist_group("redis")
on_postgresql = pytest.mark.xdist_group("postgresql")
ANY_TIME_S = 31.0
"""Longer than the budget of any request."""
PROVEN_AFTER_S = 30.0


@contextlib.contextmanager
def clients(broker: Broker, *names: str) -> Iterator[dict[str, targets.Target]]:
    """These programs of clients.py, on a network of their own to the broker."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(targets.start("clients.py", name, broker.url, netns=broker.pair.here))
            for name in names
        }


def half_open(pid: int, engine: str) -> Report:
    """A half-open verdict whose confidence follows from its own figures."""
    report = check(pid, "half-open", "--engine", engine)
    assert report.confidence == ("proven" if report.outage_s() >= PROVEN_AFTER_S else "likely"), report.text()
    return report


def goes_on(pid: int) -> None:
    kernel.wait_until(lambda: explain(pid).verdict["class"] == "healthy", f"{pid} goes on", 180)


@on_redis
def test_redis_calls_whose_purpose_is_to_wait(redis):
    with redis.client() as network, clients(network, "redis_blpop", "redis_pubsub", "redis_xread") as waiting:
        for target in waiting.values():
            kernel.wait_until(lambda: kernel.asleep_s(target.pid) > ANY_TIME_S, "silence for longer than any budget")
            for engine in ENGINES:
                check(target.pid, "idle", "--engine", engine)
                check(target.pid, "idle", "--engine", engine, "--stuck-after", 1)


@on_redis
def test_redis_stopped_then_cut_off(redis):
    with redis.client() as network, clients(network, "redis_counter") as started:
        pid = started["redis_counter"].pid
        with redis.stopped():
            kernel.wait_until(lambda: kernel.in_call(pid, "recvfrom") and kernel.asleep_s(pid) > 6, "6 s in one call")
            for engine in ENGINES:
                report = check(pid, "peer-silent", "--engine", engine, "--stuck-after", 2)
                assert f"{network.address}:{network.port}" in report.summary, report.summary
        goes_on(pid)
        network.cut()
        kernel.wait_for_unacked(f"{network.address}:{network.port}", 9, network.pair.here)
        for engine in ENGINES:
            half_open(pid, engine)
        network.heal()
        goes_on(pid)


@on_postgresql
@pytest.mark.timeout(600)
def test_postgresql_over_the_time_of_an_outage(postgresql):
    """Side by side for half a minute: LISTEN, slow queries and row locks on a good network, queries on one that is cut."""
    with (
        postgresql.client() as good,
        postgresql.client() as bad,
        clients(good, "psycopg2_listen", "psycopg3_listen") as listeners,
        clients(good, "psycopg2_slow", "psycopg3_slow", "psycopg2_row_lock", "psycopg3_row_lock") as queries,
        clients(bad, "psycopg2_loop", "psycopg3_loop") as loops,
    ):
        bad.cut()
        remote = f"{bad.address}:{bad.port}"
        kernel.wait_for_unacked(remote, 9, bad.pair.here)
        for target in loops.values():
            for engine in ENGINES:
                report = half_open(target.pid, engine)
                assert remote in report.summary, report.summary
                assert report.verdict["remedy"]["later"], report.text()
        for name, target in queries.items():
            for engine in ENGINES:
                # The server lives and works on it: only its own time makes a query stuck.
                check(target.pid, "waiting", "--engine", engine, "--stuck-after", 3600)
            report = check(target.pid, "peer-silent", "--stuck-after", 2)
            assert f"{good.address}:{good.port}" in report.summary, f"{name}: {report.summary}"
        kernel.wait_for_unacked(remote, PROVEN_AFTER_S + 2, bad.pair.here)
        for target in loops.values():
            for engine in ENGINES:
                half_open(target.pid, engine)
        kernel.wait_for_silence(f"{good.address}:{good.port}", ANY_TIME_S, good.pair.here)
        for target in listeners.values():
            for engine in ENGINES:
                check(target.pid, "idle", "--engine", engine)
                check(target.pid, "idle", "--engine", engine, "--stuck-after", 1)
        for target in queries.values():
            check(target.pid, "peer-silent", "--engine", "none")


@on_postgresql
def test_native_frames_of_a_query(postgresql):
    """The wheel's own libpq, which is stripped, between the line of Python and the system call."""
    with postgresql.client() as network, clients(network, "psycopg2_slow") as queries:
        target = queries["psycopg2_slow"]
        kernel.wait_for_call(target.pid, "poll", "ppoll")
        for engine in ENGINES:
            report = explain(target.pid, "--native", "--engine", engine, "--sample", 0)
            (thread,) = report["threads"]
            names = [frame["function"] for frame in thread["native"] if not frame["inside"]]
            assert "PQexec" in names, thread["native"]
            assert names.index("poll") < names.index("PQexec")
            libraries = {frame["library"] for frame in thread["native"]}
            assert {"libpq, PostgreSQL's client", "psycopg2", "glibc"} <= libraries
            assert report["seen"]["paused_at_most_s"] == 0
