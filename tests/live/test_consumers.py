"""A worker that polls, and the broker's own view of it: idle, busy, and without its consumer while messages wait."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import brokers, celery, command, kernel, targets
from tests.harness.brokers import rabbitmqctl
from tests.harness.targets import descendants

on_redis = pytest.mark.xdist_group("redis")
on_rabbitmq = pytest.mark.xdist_group("rabbitmq-view")
SECRET = "geheim-for-the-view"


def order(broker: brokers.Broker, *words: str) -> None:
    """`celery -A celery_app ...`, from the client's side."""
    subprocess.run(
        ["ip", "netns", "exec", broker.pair.here, *celery.CELERY, *words],
        cwd=targets.TARGETS, env=celery.environment(broker), check=True, timeout=120, capture_output=True,
    )  # fmt: skip


def send(broker: brokers.Broker, queue: str, count: int, seconds: int = 3600) -> None:
    """Messages for a queue, from another process."""
    code = f"import celery_app as c; [c.sleep.apply_async(({seconds},), queue={queue!r}) for _ in range({count})]"
    subprocess.run(
        ["ip", "netns", "exec", broker.pair.here, sys.executable, "-c", code],
        cwd=targets.TARGETS, env=celery.environment(broker), check=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def view(rabbitmq_view) -> str:
    """The management API, for a user who may look at everything and change nothing."""
    rabbitmqctl(rabbitmq_view, "add_user", "viewer", SECRET)
    rabbitmqctl(rabbitmq_view, "set_user_tags", "viewer", "monitoring")
    rabbitmqctl(rabbitmq_view, "set_permissions", "-p", "/", "viewer", "^$", "^$", ".*")
    return f"http://viewer:{SECRET}@{rabbitmq_view.address}:15672"


@on_rabbitmq
def test_a_worker_that_lost_its_consumer(rabbitmq_view, view):
    with celery.worker(rabbitmq_view, "-Q", "lost,kept", "-n", "consumers@test") as worker:
        # Idle on empty queues, whoever is asked.
        assert "--broker" not in command.check(worker.main, "idle").summary
        report = command.check(worker.main, "idle", "--broker", view)
        assert report["broker"]["view"]["matched_by"] == "address"
        assert {each["queue"] for each in report["broker"]["view"]["consumers"]} >= {"lost", "kept"}

        order(rabbitmq_view, "control", "cancel_consumer", "lost", "--destination", "consumers@test")
        send(rabbitmq_view, "lost", 3)
        report = secretly(worker.main, view)
        assert (report.code, report.confidence) == ("consumer-lost", "proven"), report.text()
        assert "3 messages wait in lost" in report.summary and "kept" not in report.summary
        assert report.evidence("ready") == 3 and report["broker"]["view"]["read_again_after_s"] > 5
        report = command.check(worker.main, "consumer-lost", "--broker", "find", confidence="proven")
        assert report["broker"]["view"]["source"] == "rabbitmqctl"

        note = command.check(worker.main, "idle")
        assert "no consumer for lost" in note.summary and "only the broker knows" in note.summary
        report = command.check(worker.main, "idle", "--broker", view.replace(SECRET, "wrong"))
        assert any("refuses user viewer" in each["because"] for each in report["seen"]["missing"])

        # It subscribes again, and works: with as many messages as it may hold, and more that wait.
        order(rabbitmq_view, "control", "add_consumer", "lost", "--destination", "consumers@test")
        send(rabbitmq_view, "lost", 20)
        for child in worker.children:
            kernel.wait_for_call(child, "clock_nanosleep")
        report = command.explain(worker.main, "--broker", view)
        assert report.verdict["class"] == "healthy" and "consumer-lost" not in report.codes, report.text()


def secretly(pid: int, view: str) -> command.Report:
    """`stucktrace pid --broker`, whose password is in no command line or environment meanwhile, nor in the answer."""
    started = subprocess.Popen(
        [command.COMMAND, "pid", str(pid), "--json", "--broker", view], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "STUCKTRACE_BROKER_PASSWORD": SECRET},
    )  # fmt: skip
    try:
        own = Path(f"/proc/{started.pid}/cmdline")
        kernel.wait_until(lambda: b"viewer:***" in own.read_bytes(), "the command line is overwritten")
        kernel.wait_until(lambda: SECRET.encode() not in environ(started.pid), "the environment is overwritten")
        children = b""
        while started.poll() is None:
            assert SECRET.encode() not in own.read_bytes()
            for child in descendants(started.pid):
                with contextlib.suppress(OSError):
                    children += Path(f"/proc/{child}/cmdline").read_bytes() + environ(child)
        assert b"py-spy" in children and SECRET.encode() not in children
        out, complaints = started.communicate(timeout=60)
    finally:
        targets.end(started)
    assert SECRET.encode() not in out + complaints
    report = command.Report(json.loads(out))
    command.validator().validate(report)
    assert SECRET not in report.text()
    return report


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@on_rabbitmq
def test_a_process_without_a_connection(rabbitmq_view, view):
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
    with targets.start(sleeper, netns=rabbitmq_view.pair.here, ready=False) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        report = command.check(target.pid, "idle", "--broker", view)
        assert any("no TCP connection" in each["because"] for each in report["seen"]["missing"])


@on_redis
def test_a_worker_that_lost_its_consumer_on_redis(redis):
    # Its queue is named elsewhere than on its command line: by the application's settings it would be another.
    given = {"CELERY_WORKER_QUEUES": "lost_on_redis"}
    with redis.client() as client, celery.worker(client, "-n", "redis@test", env=given) as worker:
        kernel.wait_until(
            lambda: "which it consumes" in command.check(worker.main, "idle", "--broker", "find").summary,
            "a blocking pop that Redis knows",
        )
        order(client, "control", "cancel_consumer", "lost_on_redis", "--destination", "redis@test")
        send(client, "lost_on_redis", 2)
        # For some seconds a pop counts as one that goes on.
        reports: list[command.Report] = []
        kernel.wait_until(
            lambda: reports.append(command.explain(worker.main, "--broker", client.url)) or reports[-1].code != "idle",
            "no pop any more",
        )
        assert (reports[-1].code, reports[-1].confidence) == ("consumer-lost", "proven"), reports[-1].text()
        assert "2 messages wait in lost_on_redis" in reports[-1].summary
        # Its objects are read within a moment, which a busy machine can take away.
        kernel.wait_until(
            lambda: "only the broker knows" in command.check(worker.main, "idle").summary, "the note without the view"
        )
