"""Real Celery workers on real brokers: idle in every pool, at work, stuck in a task, and cut off from the broker."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness import celery, command, kernel, targets
from tests.live.conftest import ENGINES

on_redis = pytest.mark.xdist_group("redis")
on_rabbitmq = pytest.mark.xdist_group("rabbitmq")


def children_of(report: command.Report) -> dict[int, str]:
    """pid -> verdict code of the report's children."""
    return {child["pid"]: child["verdict"]["code"] for child in report["children"]}


@on_redis
def test_an_idle_prefork_worker(redis):
    with celery.worker(redis) as worker:
        for child in worker.children:
            kernel.wait_for_call(child, "read")
        for engine in ENGINES:
            report = command.check(worker.main, "idle", "--engine", engine)
            assert report["process"]["kind"] == "celery-main"
            assert children_of(report) == dict.fromkeys(worker.children, "idle"), report.text()
            for child in worker.children:
                report = command.check(child, "idle", "--engine", engine)
                assert report["process"]["kind"] == "celery-child"


@on_redis
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_idle_workers_without_processes(redis, pool):
    with celery.worker(redis, "--pool", pool, children=0) as worker:
        for engine in ENGINES:
            command.check(worker.main, "idle", "--engine", engine)


@on_redis
def test_beat_between_two_ticks(redis, tmp_path):
    beat = [*celery.CELERY, "beat", "--loglevel", "INFO", "--schedule", str(tmp_path / "schedule")]
    env = {"BROKER_URL": redis.url}
    with targets.start(beat, netns=redis.pair.here, env=env, cwd=targets.TARGETS, ready=False) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep", "futex", "select", "pselect6")
        kernel.wait_until(lambda: "beat: Starting" in target.log(), "beat runs")
        for engine in ENGINES:
            assert command.explain(target.pid, "--engine", engine).verdict["class"] == "healthy"


@on_redis
def test_tasks_that_work_and_tasks_that_hang(redis):
    """Four children, four tasks: two are healthy; one asks a server that never reads; one waits for its own lock."""
    with (
        targets.start("http_holder.py", "deaf", netns=redis.pair.here) as deaf,
        celery.worker(redis, children=4) as worker,
    ):
        worker.send("sleep", 3600)
        worker.send("compute")
        worker.send("fetch", f"http://127.0.0.1:{deaf.said}/")
        worker.send("self_deadlock")

        def child_in(call: str) -> int:
            return kernel.wait_until(
                lambda: next(
                    (pid for pid in worker.children if kernel.in_call(pid, call) and kernel.asleep_s(pid) > 1), 0
                ),
                f"a child in {call} for more than a moment",
            )

        sleeps, fetches, locked = child_in("clock_nanosleep"), child_in("recvfrom"), child_in("futex")
        (computes,) = {*worker.children} - {sleeps, fetches, locked}
        kernel.wait_for_state(computes, "R")
        kernel.wait_until(lambda: kernel.asleep_s(fetches) > 6, "6 s without an answer")
        for engine in ENGINES:
            assert command.explain(sleeps, "--engine", engine).verdict["class"] == "healthy"
            command.check(computes, "working", "--engine", engine)
            assert f"127.0.0.1:{deaf.said}" in command.check(fetches, "peer-silent", "--engine", engine).summary
            command.check(locked, "deadlock", "--engine", engine)
            report = command.explain(worker.main, "--engine", engine)
            found = children_of(report)
            assert (found[fetches], found[locked]) == ("peer-silent", "deadlock"), report.text()


@on_redis
def test_a_main_process_cut_off_from_redis(redis):
    """Its loop sits in a call to Redis: that is why, and the standing loop is said beside it. It heals."""
    with redis.client() as client, celery.worker(client) as worker:
        client.cut()
        kernel.wait_until(
            lambda: kernel.in_call(worker.main, "recvfrom") and kernel.asleep_s(worker.main) > 10, "10 s in one call"
        )
        for engine in ENGINES:
            report = command.check(worker.main, "half-open", "--engine", engine)
            assert "blocked-loop" in report.codes, report.text()
            assert f"{client.address}:{client.port}" in report.summary, report.summary
            assert children_of(report) == dict.fromkeys(worker.children, "idle"), report.text()
        client.heal()
        kernel.wait_until(lambda: not kernel.in_call(worker.main, "recvfrom"), "the loop goes on", 180)
        kernel.wait_until(lambda: command.explain(worker.main).code == "idle", "the worker is idle again")


@on_rabbitmq
def test_a_worker_on_rabbitmq_idle_and_asked_to_end_while_the_broker_stands_still(rabbitmq):
    with rabbitmq.client() as client, celery.worker(client) as worker:
        for engine in ENGINES:
            command.check(worker.main, "idle", "--engine", engine)
        with rabbitmq.stopped():
            os.kill(worker.main, signal.SIGTERM)
            kernel.wait_until(
                lambda: kernel.in_call(worker.main, "recvfrom") and kernel.asleep_s(worker.main) > 6, "6 s in one call"
            )
            for engine in ENGINES:
                report = command.check(worker.main, "peer-silent", "--engine", engine)
                assert "basic_cancel" in report.text(), report.text()
