"""`stucktrace probe-broker` against real brokers: round trips, TLS, alarms, silence, refusals; and no password anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.harness import command, kernel
from tests.harness.brokers import rabbitmqctl
from tests.harness.targets import descendants

on_redis = pytest.mark.xdist_group("redis")
on_rabbitmq = pytest.mark.xdist_group("rabbitmq-view")
SECRET = "not:for@everybody"
QUOTED = "not%3Afor%40everybody"


def probe(broker, *args, **options) -> tuple[dict[str, Any], command.Result]:
    """`probe-broker --json` from the client's side; what it prints never has the password."""
    prefix = ["ip", "netns", "exec", broker.pair.here]
    result = command.run("probe-broker", *args, "--json", prefix=prefix, **options)
    for text in (result.stdout, result.stderr):
        assert SECRET not in text and QUOTED not in text and "everybody" not in text
    answer = json.loads(result.stdout) if result.stdout else {}
    assert answer.get("schema", "stucktrace.probe-broker/1") == "stucktrace.probe-broker/1"
    return answer, result


@pytest.fixture(scope="module")
def url(rabbitmq_view) -> str:
    """Of a user whose password is found again wherever it is shown."""
    rabbitmqctl(rabbitmq_view, "add_user", "prober", SECRET)
    rabbitmqctl(rabbitmq_view, "set_permissions", "-p", "/", "prober", ".*", ".*", ".*")
    return f"amqp://prober:{QUOTED}@{rabbitmq_view.address}:{rabbitmq_view.port}"


@on_rabbitmq
def test_round_trips(rabbitmq_view, url):
    answer, result = probe(rabbitmq_view, url, "--samples", 30)
    assert {each["kind"]: each["count"] for each in answer["round_trips"]} == {"persistent": 30, "transient": 30}
    for each in answer["round_trips"]:
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"] <= each["max_ms"]
    p99_ms = answer["verdict"]["p99_ms"]
    bands = (("healthy", 0, 20), ("slow", 5, 100), ("degraded", 1, 1000), ("broken", 1, float("inf")))
    code, status = next((code, status) for code, status, limit_ms in bands if p99_ms < limit_ms)
    assert (answer["verdict"]["code"], result.status) == (code, status)
    assert set(answer["phases_ms"]) == {"tcp", "amqp", "channel"}
    assert answer["broker"]["server"].startswith("RabbitMQ ")
    assert "stucktrace" not in rabbitmqctl(rabbitmq_view, "list_queues", "name")
    _, result = probe(rabbitmq_view, url, "--samples", 3, "--p99-threshold-ms", 0.001)
    assert result.status == 1


@on_rabbitmq
def test_over_tls(rabbitmq_view, url, rabbitmq_authority):
    address = rabbitmq_view.address
    encrypted = f"amqps://prober@{address}"
    environment = {"STUCKTRACE_BROKER_URL": encrypted, "STUCKTRACE_BROKER_PASSWORD": SECRET}
    answer, _ = probe(rabbitmq_view, "--ca", rabbitmq_authority, "--samples", 3, env=environment)
    assert set(answer["phases_ms"]) == {"tcp", "tls", "amqp", "channel"}
    answer, result = probe(rabbitmq_view, "--samples", 3, env=environment)
    assert (answer["verdict"]["code"], answer["verdict"]["reason"], result.status) == ("not-connected", "tls", 3)
    assert "--ca" in result.stderr
    answer, _ = probe(rabbitmq_view, "--insecure", "--samples", 3, env=environment)
    assert len(answer["round_trips"]) == 2
    for wrong, words in (
        (f"amqp://prober:{QUOTED}@{address}:5671", "speaks TLS"),
        (f"amqps://prober:{QUOTED}@{address}:5672", "does not speak TLS"),
    ):
        answer, result = probe(rabbitmq_view, wrong)
        assert result.status == 3
        assert words in answer["verdict"]["summary"] or "amqps://" in answer["verdict"]["remedy"], answer


@on_rabbitmq
@pytest.mark.parametrize(
    "change, reason, words",
    [
        (("prober:", "prober:x"), "authentication", "the login of user prober is refused"),
        ((":5672", ":5672/nowhere"), "vhost", "there is no virtual host nowhere"),
        ((":5672", ":5673"), "refused", "refuses connections"),
        ((":5672", ":15672"), "not-amqp", "is an HTTP server"),
    ],
)
def test_refusals(rabbitmq_view, url, change, reason, words):
    answer, result = probe(rabbitmq_view, url.replace(*change))
    assert (answer["verdict"]["reason"], result.status) == (reason, 3)
    assert words in answer["verdict"]["summary"]
    assert result.stderr.count("\n") == 1 and words in result.stderr


@on_rabbitmq
def test_a_user_who_may_not_declare(rabbitmq_view, url):
    try:
        for configure, words in (("^$", "may not declare"), (".*", "may not read from")):
            rabbitmqctl(rabbitmq_view, "set_permissions", "-p", "/", "prober", configure, ".*", "^$")
            answer, _ = probe(rabbitmq_view, url, "--samples", 3)
            assert [each["kind"] for each in answer["round_trips"]] == ["transient"]
            assert words in answer["notes"][0]
            assert "stucktrace.probe." not in rabbitmqctl(rabbitmq_view, "list_queues", "name")
    finally:
        rabbitmqctl(rabbitmq_view, "set_permissions", "-p", "/", "prober", ".*", ".*", ".*")


@on_rabbitmq
def test_an_alarm(rabbitmq_view, url):
    rabbitmqctl(rabbitmq_view, "set_vm_memory_high_watermark", "absolute", "1000000")
    try:
        answer, result = probe(rabbitmq_view, url)
        assert (answer["verdict"]["code"], result.status) == ("broker-blocked", 1)
        assert "memory" in answer["verdict"]["summary"]
    finally:
        rabbitmqctl(rabbitmq_view, "set_vm_memory_high_watermark", "absolute", "2GB")


@on_rabbitmq
def test_the_command_line_is_overwritten_and_nothing_is_left_after_a_kill(rabbitmq_view, url):
    started = subprocess.Popen(
        ["ip", "netns", "exec", rabbitmq_view.pair.here, command.COMMAND, "probe-broker", url, "--interval", "0.05", "--samples", "9999"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env={**os.environ, "STUCKTRACE_BROKER_PASSWORD": SECRET},
    )  # fmt: skip
    try:
        queues = lambda: rabbitmqctl(rabbitmq_view, "list_queues", "name")  # noqa: E731
        kernel.wait_until(lambda: "stucktrace.probe." in queues(), "the probe's queue")
        for pid in (started.pid, *descendants(started.pid)):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert b"everybody" not in line and b"prober:****" in line
        assert started.stderr is not None
        assert b" of 9999 round trips, p50 " in started.stderr.readline()
        started.kill()
        kernel.wait_until(lambda: "stucktrace.probe." not in queues(), "the end of the probe's queue")
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        started.wait(60)


def test_a_server_that_ends_the_connection_while_we_send():
    """It used to end us by SIGPIPE, without a word."""

    def refuse() -> None:
        client, _ = server.accept()
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        for scheme in ("amqps", "rediss"):
            thread = threading.Thread(target=refuse, daemon=True)
            thread.start()
            result = command.run("probe-broker", f"{scheme}://127.0.0.1:{server.getsockname()[1]}", "--json")
            thread.join(60)
            assert (result.status, json.loads(result.stdout)["verdict"]["reason"]) == (3, "tls")


@on_redis
def test_a_redis_server(redis):
    answer, result = probe(redis, redis.url, "--samples", 30)
    assert [(each["kind"], each["count"]) for each in answer["round_trips"]] == [("ping", 30)]
    assert answer["broker"]["server"].startswith("Redis ")
    assert result.status in (0, 5, 1)
    answer, result = probe(redis, redis.url.replace("redis://", "amqp://user@"))
    assert (answer["verdict"]["reason"], result.status) == ("not-amqp", 3)
    assert "is a Redis server" in answer["verdict"]["summary"]
