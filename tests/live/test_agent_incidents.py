"""`stucktrace agent` and what happens over time: the SIGABRT that ends a hung worker, and look-alikes of it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness import agent, brokers, kernel


def event(watcher: agent.Agent, kind: str, code: str) -> agent.Event:
    """The first event of this type and code, past or to come."""
    for _ in range(32):
        for seen in watcher.events:
            if (seen["type"], seen["code"]) == (kind, code):
                return seen
        if watcher.read(120) is None:
            break
    raise AssertionError(f"no {kind} {code}: {agent.summaries(watcher.events)}; {watcher.said()}")


def stack(told: agent.Event) -> list[str]:
    """The frames of the thread that the alert is about, and which of them matters."""
    verdict = told["report"]["verdict"]
    thread = next(thread for thread in told["report"]["threads"] if thread["tid"] == verdict["tid"])
    return [frame["function"] for frame in thread["python"]][verdict["frame"] :]


@pytest.mark.xdist_group("redis")
@pytest.mark.parametrize("engine", ["core", "none"])
def test_a_timeout_follows_the_alert_with_the_same_stack(redis: brokers.Broker, engine: str):
    with redis.client() as broker, agent.gunicorn("--timeout", 16, netns=broker.pair.here) as server:
        worker = agent.own_pid(server.workers[0])
        with server.request(f"/redis?url={broker.url}") as client:
            assert client.wait(120) == 0
        with agent.watching(server.master, "--engine", engine) as watcher:
            broker.cut()
            with server.request(f"/redis?url={broker.url}"):
                hung = event(watcher, "opened", "half-open")
                timeout = event(watcher, "opened", "worker-timeout")
            assert timeout["affected"][0]["pid"] == hung["affected"][0]["pid"] == worker
            assert stack(timeout) == stack(hung) and "ask_redis" in stack(timeout)
            verdict, cause = timeout["report"]["findings"][:2]
            assert cause["code"] == "half-open" and cause["summary"] in verdict["summary"]
            assert verdict["confidence"] == ("proven" if engine == "core" else "likely"), verdict["summary"]
            assert event(watcher, "resolved", "half-open")["how"] == "killed"


@pytest.mark.parametrize("engine", ["core", "none"])
def test_an_abort_by_hand_is_no_timeout(engine: str):
    with (
        agent.gunicorn("--timeout", 60, workers=2) as server,
        agent.watching(server.master, "--engine", engine) as watcher,
    ):
        for worker in server.workers:
            os.kill(worker, signal.SIGABRT)
        kernel.wait_until(lambda: not any(kernel.alive(worker) for worker in server.workers), "both gone")
        assert watcher.read(6) is None, agent.summaries(watcher.events)
