"""`stucktrace agent` beside a real Celery worker: a deadlock is told at once, and an alert names the task in hand."""

from __future__ import annotations

import pytest

from tests.harness import agent, brokers, celery, command

pytestmark = pytest.mark.xdist_group("redis")


@pytest.fixture
def worker(redis: brokers.Broker):
    with redis.client() as broker, celery.worker(broker, children=2, prefix=agent.ALONE) as worker:
        yield worker


def test_a_deadlock_of_two_threads_is_told_within_seconds(worker: celery.Worker):
    with agent.watching(worker.main) as watcher:
        task = worker.send("pthread_deadlock")
        opened = watcher.wait_for("opened")
        assert (opened["code"], opened["confidence"], opened["count"]) == ("deadlock", "proven", 1), opened["summary"]
        # Half of what an open-ended request has: a deadlock waits for no budget.
        assert opened["affected"][0]["since_s"] <= 15
        found = command.Report(opened["report"])
        waiting = {
            waiter["tid"] for lock in found["locks"] if lock["kind"] == "pthread-mutex" for waiter in lock["waiters"]
        }
        stacks = [thread["python"] for thread in found["threads"] if thread["tid"] in waiting]
        assert len(stacks) == 2 and all(stack[0]["function"].endswith("take") for stack in stacks)
        works = [thread["work"] for thread in found["threads"] if thread["work"]]
        assert [(work["name"], work["id"]) for work in works] == [("celery_app.pthread_deadlock", task)]


def test_the_alert_of_a_hung_child_names_its_task(worker: celery.Worker):
    with agent.watching(worker.main, "--stuck-after", 10) as watcher:
        task = worker.send("self_deadlock")
        opened = watcher.wait_for("opened")
        assert opened["code"] == "deadlock", opened["summary"]
        assert opened["affected"][0]["pid"] in {agent.own_pid(child) for child in worker.children}
        found = command.Report(opened["report"])
        thread = next(thread for thread in found["threads"] if thread["tid"] == found.verdict["tid"])
        assert (thread["work"]["kind"], thread["work"]["name"]) == ("task", "celery_app.self_deadlock")
        assert thread["work"]["id"] == task and thread["work"]["age_s"] is not None
        assert watcher.end() == 0
