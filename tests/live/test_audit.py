"""`stucktrace audit` on real gunicorn and Celery: a clean deployment, and each trap planted alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import command, elsewhere, gunicorn, kernel, namespaces, targets
from tests.live.conftest import ENGINES

pytestmark = pytest.mark.xdist_group("audit")

APP = "connections_app:application"
STATUS = {"ok": 0, "error": 1, "warn": 5}
GUARDED: dict[str, Any] = {"keepalive": [10, 5, 2], "user_timeout_ms": 15000}
CLEAN = ("--timeout", 60, "--worker-tmp-dir", "/dev/shm")


@pytest.fixture(scope="module")
def peer() -> Iterator[tuple[namespaces.Pair, str]]:
    """A server in a network namespace of its own, that says nothing."""
    with namespaces.pair() as pair, targets.start("accepts.py", pair.there_address, netns=pair.there) as server:
        yield pair, f"{pair.there_address}:{server.said}"


@contextlib.contextmanager
def serve(
    peer: tuple[namespaces.Pair, str],
    *options: str | int,
    connection: dict[str, Any] | None = None,
    workers: int = 1,
    env: dict[str, str] | None = None,
    titled: bool = False,
) -> Iterator[gunicorn.Gunicorn]:
    """A gunicorn whose workers have a connection to the peer, as soon as they do."""
    pair, address = peer
    plan = {"CONNECTIONS": json.dumps([{"to": address, **(GUARDED if connection is None else connection)}])}
    words = (*CLEAN, *options)
    with gunicorn.serve(
        *words, app=APP, netns=pair.here, env={**plan, **(env or {})}, workers=workers, titled=titled
    ) as server:
        imports = 1 if "--preload" in options else workers
        kernel.wait_until(lambda: server.target.log().count("connections are open") == imports, "the connections")
        yield server


def audit(pid: int, *args: str) -> dict[str, Any]:
    """The answer as JSON; the text and the exit status have to agree with it."""
    result = command.run("audit", pid, "--json", *args)
    assert result.stdout.count("\n") == 1, f"status {result.status}: {result.stdout}{result.stderr}"
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["schema"] == "stucktrace.audit/1"
    assert result.status == STATUS[answer["status"]], answer
    return answer


def problems(answer: dict[str, Any]) -> dict[str, str]:
    found = {check["code"]: check for check in answer["checks"] if check["status"] != "ok"}
    assert all(check["fix"] for check in found.values()), found
    return {code: check["status"] for code, check in found.items()}


def settings(answer: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    return {each["name"]: (each["value"], each["source"]) for each in answer["settings"]}


def test_a_clean_deployment(peer):
    with serve(peer, "--max-requests", 1000, "--max-requests-jitter", 100, workers=2) as server:
        for engine in ENGINES:
            answer = audit(server.master, "--engine", engine)
            assert (answer["status"], problems(answer)) == ("ok", {}), answer
            assert answer["workers"] == sorted(server.workers)
            (connection,) = (each for each in answer["connections"] if each["direction"] == "out")
            assert (connection["idle_window_s"], connection["in_flight_window_s"]) == (15, 15)
            assert sorted(held["pid"] for held in connection["held"]) == sorted(server.workers)
            found = settings(answer)
            assert found["timeout"] == (60, "command line")
            assert found["graceful_timeout"] == (30, "default")
            assert all(each["in_force"] for each in answer["settings"] if each["subject"] == "gunicorn")
        text = command.run("audit", server.workers[0])
        assert text.status == 0, text.stdout
        assert "15 s idle, 15 s with data in flight; the worker's timeout is 60 s" in text.stdout


@pytest.mark.parametrize(
    ("connection", "options", "code", "status"),
    [
        ({}, (), "no-timeout", "warn"),
        ({"keepalive": [300, 10, 3], "user_timeout_ms": 0}, (), "detection-too-slow", "warn"),
        ({"keepalive": [10, 5, 2], "user_timeout_ms": 0}, (), "detection-too-slow", "warn"),
        ({"timeout": 90}, (), "detection-too-slow", "warn"),
        ({"timeout": 5}, (), None, "ok"),
        (None, ("--timeout", 0), "timeout-off", "warn"),
        (None, ("--max-requests", 5, "--max-requests-jitter", 1), "max-requests-low", "warn"),
        (None, ("--worker-tmp-dir", "/var/tmp"), "heartbeat-on-disk", "warn"),
        ({"green": False}, ("-k", "gevent"), "c-client-in-greenlets", "error"),
    ],
)
def test_a_planted_trap(peer, connection, options, code, status):
    with serve(peer, *options, connection=connection) as server:
        answer = audit(server.workers[0])
        assert problems(answer) == ({} if code is None else {code: status}), answer
        assert answer["status"] == status


def test_psycopg2_that_yields(peer):
    with serve(peer, "-k", "gevent", connection={"green": True}) as server:
        assert problems(audit(server.master)) == {}


def test_a_connection_from_before_the_fork(peer):
    with serve(peer, "--preload", workers=2) as server:
        for pid in (server.master, server.workers[0]):
            assert problems(audit(pid)) == {"inherited-connection": "warn"}


def test_sources_and_a_config_file_that_is_not_in_force(peer, tmp_path):
    """A process title hides the command line; the file is changed after the start, then read again."""
    file = tmp_path / "settings.py"
    file.write_text("timeout = 55\ngraceful_timeout = 5 * 4\nkeepalive = int('7')\nworkers = 3\n")
    env = {"GUNICORN_CMD_ARGS": "--threads 1 --worker-connections=77", "WEB_CONCURRENCY": "9"}
    with serve(peer, "-c", file, titled=True, env=env) as server:
        answer = audit(server.master)
        found = settings(answer)
        assert problems(answer) == {}
        assert found["timeout"] == (60, "command line")
        assert found["worker_connections"] == (77, "GUNICORN_CMD_ARGS")
        assert found["graceful_timeout"] == (20, str(file))
        assert found["keepalive"] == (7, str(file))
        (workers,) = (each for each in answer["settings"] if each["name"] == "workers")
        assert workers["others"] == [[str(file), 3], ["WEB_CONCURRENCY", 9]]

        file.write_text("graceful_timeout = 33\n")
        assert problems(audit(server.master)) == {"config-not-in-force": "warn"}
        os.kill(server.master, signal.SIGHUP)
        kernel.wait_until(lambda: server.target.log().count("Booting worker") == 2, "a new worker")
        kernel.wait_until(lambda: not kernel.alive(server.workers[0]), "the end of the old worker")
        answer = audit(server.master)
        assert problems(answer) == {}
        assert settings(answer)["graceful_timeout"] == (33, str(file))


def test_celery_and_its_command_line():
    options = ["--concurrency", "2", "--max-tasks-per-child", "2", "-O", "fair", "--without-mingle"]
    start = [sys.executable, "-m", "celery", "-A", "memory_celery", "worker", "--loglevel", "INFO", *options]
    with targets.start(start, cwd=targets.TARGETS, ready=False) as target:
        kernel.wait_until(lambda: "ready." in target.log(), "the worker is ready")
        children = kernel.wait_for_children(target.pid, 2)
        for pid in (target.pid, children[0]):
            answer = audit(pid)
            assert problems(answer) == {"max-tasks-per-child": "warn"}
            found = settings(answer)
            assert found["worker_max_tasks_per_child"] == (2, "command line")
            assert found["optimization"] == ("fair", "command line")


def test_what_is_not_python_and_what_is_not_there(peer):
    pair, address = peer
    host, _, port = address.rpartition(":")
    script = f"exec 3<>/dev/tcp/{host}/{port}; echo ready >&$READY_FD; read -u 3 line"
    with targets.start(["bash", "-c", script], netns=pair.here) as target:
        answer = audit(target.pid)
        assert [each["remote"] for each in answer["connections"]] == [address]
        assert problems(answer) == {"no-timeout": "warn"}
        with elsewhere.installed() as environment:
            refused = elsewhere.run(environment, "audit", target.pid, prefix=elsewhere.UNPRIVILEGED)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1), refused
    gone = command.run("audit", target.pid)
    assert (gone.status, gone.stderr.count("\n")) == (3, 1)
