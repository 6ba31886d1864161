"""Masters and their children, and the processes that only stand above Python: gunicorn, Celery, tini, sh, supervisord."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import brokers, command, kernel, targets

APP = """
import threading
lock = threading.Lock()

def inner():
    with lock:
        return [b"done"]

def application(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/hang":
        with lock:
            return inner()
    return [b"done"]
"""
TASKS = """
import celery, os, threading
app = celery.Celery(broker=os.environ["BROKER"])

@app.task
def hang():
    lock = threading.Lock()
    with lock:
        with lock:
            pass
"""
WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gunicorn(folder: Path, workers: int, *options: str) -> Iterator[tuple[int, int, list[int]]]:
    """(the master's pid, its port, its workers), once every worker waits for a connection."""
    (folder / "app.py").write_text(APP)
    port = free_port()
    arguments = ["-w", str(workers), "-b", f"127.0.0.1:{port}", "--no-control-socket", *options, "app"]
    with targets.start([sys.executable, "-m", "gunicorn", *arguments], ready=False, cwd=folder) as master:
        children = kernel.wait_for_children(master.pid, workers)
        for child in children:
            kernel.wait_for_call(child, "pselect6", "select", "epoll_wait")
        yield master.pid, port, children


@contextmanager
def request(port: int, path: str) -> Iterator[None]:
    """A request whose answer nobody waits for."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    try:
        yield
    finally:
        connection.close()


def test_an_idle_gunicorn(tmp_path: Path, engine: str):
    with gunicorn(tmp_path, 3) as (master, _, workers):
        report = command.check(master, "idle", "--engine", engine)
        assert report["process"]["kind"] == "gunicorn-master"
        assert {child["pid"]: child["verdict"]["code"] for child in report["children"]} == dict.fromkeys(
            workers, "idle"
        )
        assert {child["role"] for child in report["children"]} == {"gunicorn-worker"}
        text = command.run("pid", master, "--engine", engine)
        assert text.status == 0
        for worker in workers:
            assert text.stdout.count(f" {worker}  ") == 1


def test_one_stuck_worker_decides_the_masters_exit_status(tmp_path: Path, engine: str):
    with gunicorn(tmp_path, 3, "-t", "1000") as (master, port, workers), request(port, "/hang"):
        stuck = kernel.wait_until(
            lambda: [pid for pid in workers if kernel.in_call(pid, "futex")], "a worker in its own lock"
        )
        report = command.check(master, "idle", "--engine", engine)
        assert {child["pid"]: child["verdict"]["code"] for child in report["children"]} == {
            pid: "deadlock" if pid in stuck else "idle" for pid in workers
        }
        text = command.run("pid", master, "--engine", engine)
        assert text.status == 1
        assert "1 stuck" in text.stdout and f"stucktrace pid {stuck[0]}" in text.stdout


def test_siblings_in_the_same_wait_are_counted(tmp_path: Path, engine: str):
    with gunicorn(tmp_path, 3, "-t", "1000") as (_, port, workers), request(port, "/hang"), request(port, "/hang"):
        stuck = kernel.wait_until(
            lambda: (found := [pid for pid in workers if kernel.in_call(pid, "futex")])[1:] and found,
            "two stuck workers",
        )
        report = command.check(stuck[0], "deadlock", "--engine", engine)
        assert report["siblings"] == {"same_wait": 1, "total": 2}
        assert "1 of its 2 siblings" in command.run("pid", stuck[0], "--engine", engine).stdout


def test_a_master_with_many_workers(tmp_path: Path):
    """One look at the kernel and one window for all of them: the time does not grow with a window for each."""
    with gunicorn(tmp_path, 16) as (master, _, workers):
        report = command.check(master, "idle")
        assert len(report["children"]) == len(workers) == 16
        assert report["timings_ms"]["total"] < 20_000


@pytest.mark.xdist_group("redis")
def test_a_celery_worker_with_its_pool(tmp_path: Path, redis: brokers.Broker):
    (tmp_path / "tasks.py").write_text(TASKS)
    queue = "masters"
    arguments = [
        "-A",
        "tasks",
        "worker",
        "-l",
        "info",
        "-c",
        "2",
        "-P",
        "prefork",
        "-Q",
        queue,
        "--without-gossip",
        "--without-mingle",
    ]
    with redis.client() as broker:
        environment = {"BROKER": broker.url}
        with targets.start(
            [sys.executable, "-m", "celery", *arguments],
            ready=False,
            cwd=tmp_path,
            netns=broker.pair.here,
            env=environment,
        ) as main:
            children = kernel.wait_for_children(main.pid, 2)
            for child in children:
                kernel.wait_for_call(child, "read")
            kernel.wait_until(lambda: " ready." in main.log(), "the worker is ready")
            report = command.check(main.pid, "idle")
            assert report["process"]["kind"] == "celery-main"
            assert {child["pid"]: child["verdict"]["code"] for child in report["children"]} == dict.fromkeys(
                children, "idle"
            )
            send = f"import tasks; tasks.hang.apply_async(queue={queue!r})"
            with targets.start(
                [sys.executable, "-c", send], ready=False, cwd=tmp_path, netns=broker.pair.here, env=environment
            ) as sender:
                assert sender.process.wait(120) == 0, sender.log()
            stuck = kernel.wait_until(
                lambda: [pid for pid in children if kernel.in_call(pid, "futex")], "a task in its own lock"
            )
            report = command.check(main.pid, "idle")
            assert {child["pid"]: child["verdict"]["class"] for child in report["children"]} == {
                pid: "stuck" if pid in stuck else "healthy" for pid in children
            }


@pytest.mark.parametrize(
    "above",
    [["tini", "--"], ["sh", "-c", '"$@"; true', "sh"], ["tini", "--", "sh", "-c", '"$@"; true', "sh"]],
    ids=["tini", "sh", "tini and sh"],
)
def test_what_stands_above_python_is_followed_down(above: list[str], engine: str):
    with targets.start([*above, sys.executable, "-c", WAITING]) as target:
        report = command.explain(target.pid, "--engine", engine)
        assert report["process"]["python"]
        assert report["process"]["pid"] in targets.descendants(target.pid)
        assert report.verdict["class"] == "healthy"


def test_supervisord_stands_for_its_programs(tmp_path: Path):
    """supervisord is Python itself, and never what a user means."""
    configuration = tmp_path / "supervisord.conf"
    program = f"command={sys.executable} -c 'import threading; threading.Event().wait()'"
    configuration.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/log\npidfile={tmp_path}/pid\nchildlogdir={tmp_path}\n"
        f"[program:one]\n{program}\n[program:two]\n{program}\n"
    )
    with targets.start(["supervisord", "-c", str(configuration)], ready=False) as supervisor:
        children = kernel.wait_for_children(supervisor.pid, 2)
        for child in children:
            kernel.wait_for_call(child, "futex")
        result = command.run("pid", supervisor.pid, "--json")
        assert result.status == 0
        assert sorted(json.loads(line)["process"]["pid"] for line in result.stdout.splitlines()) == children
        # The user learns that something else than what was asked for is shown.
        assert str(supervisor.pid) in result.stderr and result.stderr.count("\n") == 1


def test_a_child_that_ends_meanwhile_is_left_out(tmp_path: Path):
    """Workers come and go all the time: the master is answered for, whoever is there."""
    with gunicorn(tmp_path, 2, "--max-requests", "1") as (master, port, _):
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                    connection.request("GET", "/")
                    connection.getresponse().read()
                    connection.close()
                except OSError:
                    continue

        churner = threading.Thread(target=churn)
        churner.start()
        try:
            for _ in range(10):
                report = command.explain(master)
                assert report["process"]["pid"] == master
                assert all(child["verdict"]["class"] == "healthy" for child in report["children"]), report["children"]
        finally:
            stop.set()
            churner.join()
