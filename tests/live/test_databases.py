"""Real Redis and PostgreSQL clients: idle ones, slow ones, cut ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.harness import brokers, kernel, namespaces, targets
from tests.harness.brokers import Broker
from tests.harness.command import check, explain

ENGINES = ("auto", "none")

redis_group = pytest.mark.xdist_group("redis")
postgresql_group = pytest.mark.xdist_group("postgresql")


@pytest.fixture(scope="module")
def redis() -> Iterator[Broker]:
    with namespaces.pair() as pair, brokers.redis(pair) as broker:
        yield broker


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Broker]:
    with namespaces.pair() as pair, brokers.postgresql(pair) as broker:
        yield broker


@contextlib.contextmanager
def client(broker: Broker, name: str) -> Iterator[targets.Target]:
    with targets.start("clients.py", name, broker.url, netns=broker.pair.here) as target:
        yield target


def settled(pid: int) -> None:
    kernel.wait_for_call(pid, "recvfrom", "poll", "ppoll", "epoll_wait", "select", "pselect6")


@redis_group
@pytest.mark.parametrize("name", ["redis_blpop", "redis_pubsub"])
def test_a_call_whose_purpose_is_to_wait_is_idle(redis: Broker, name: str) -> None:
    with client(redis, name) as target:
        settled(target.pid)
        kernel.wait_until(lambda: (explain(target.pid)["threads"][0]["blocked_s"] or 0) > 3, "asleep for 3 s")
        for engine in ENGINES:
            check(target.pid, "idle", "--engine", engine)
            check(target.pid, "idle", "--engine", engine, "--stuck-after", 1)


@redis_group
def test_redis_cut_off_and_redis_stopped(redis: Broker) -> None:
    with client(redis, "redis_counter") as target:
        with redis.stopped():
            kernel.wait_until(lambda: (explain(target.pid)["threads"][0]["blocked_s"] or 0) > 3, "asleep for 3 s")
            for engine in ENGINES:
                assert (
                    check(target.pid, "peer-silent", "--engine", engine, "--stuck-after", 2).verdict["fd"] is not None
                )
        kernel.wait_until(lambda: explain(target.pid).verdict["class"] == "healthy", "it goes on")
        try:
            redis.cut()
            kernel.wait_for_unacked(f"{redis.address}:{redis.port}", 9, redis.pair.here)
            for engine in ENGINES:
                check(target.pid, "half-open", "--engine", engine, confidence="likely")
        finally:
            redis.heal()
        kernel.wait_until(lambda: explain(target.pid).verdict["class"] == "healthy", "it goes on", 120)


@postgresql_group
@pytest.mark.parametrize("name", ["psycopg2_listen", "psycopg3_listen"])
def test_listen_is_idle(postgresql: Broker, name: str) -> None:
    with client(postgresql, name) as target:
        settled(target.pid)
        for engine in ENGINES:
            check(target.pid, "idle", "--engine", engine)
            check(target.pid, "idle", "--engine", engine, "--stuck-after", 1)


@postgresql_group
@pytest.mark.parametrize("name", ["psycopg2_slow", "psycopg3_slow", "psycopg2_row_lock"])
def test_a_slow_query_waits_inside_its_budget(postgresql: Broker, name: str) -> None:
    with client(postgresql, name) as target:
        settled(target.pid)
        for engine in ENGINES:
            check(target.pid, "waiting", "--engine", engine)

        def sent_s() -> float:
            return max(socket["last_send_s"] or 0 for socket in explain(target.pid)["sockets"] if socket["remote"])

        kernel.wait_until(lambda: sent_s() > 4, "a query 4 s old")
        for engine in ENGINES:
            check(target.pid, "peer-silent", "--engine", engine, "--stuck-after", 2)


@postgresql_group
def test_queries_cut_off(postgresql: Broker) -> None:
    with client(postgresql, "psycopg2_loop") as second, client(postgresql, "psycopg3_loop") as third:
        try:
            postgresql.cut()
            kernel.wait_for_unacked(f"{postgresql.address}:{postgresql.port}", 9, postgresql.pair.here)
            for target in (second, third):
                kernel.wait_until(
                    lambda pid=target.pid: any(socket["backoff"] for socket in explain(pid)["sockets"]),
                    "a growing backoff",
                )
                for engine in ENGINES:
                    check(target.pid, "half-open", "--engine", engine)
        finally:
            postgresql.heal()
        for target in (second, third):
            kernel.wait_until(lambda pid=target.pid: explain(pid).verdict["class"] == "healthy", "it goes on", 120)
