"""`stucktrace agent` and what happens over time: the SIGABRT that ends a hung worker, and look-alikes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors import procfs

from tests.harness import agent, brokers, celery, kernel, targets


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


INIT = ("sh", "-c", '"$@" & while :; do wait; sleep 1; done', "init")
DIES_YOUNG = """
import os, time
def post_worker_init(worker):
    time.sleep(0.3)
    os.abort()
"""


@contextlib.contextmanager
def first_of(target: targets.Target) -> Iterator[int]:
    """The first process of the PID namespace that the target made: it ends last, when all others there are gone."""
    (init,) = kernel.wait_for_children(target.pid, 1)
    try:
        yield init
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)
        kernel.wait_until(lambda: not kernel.alive(init), "the end of the namespace")


@contextlib.contextmanager
def celery_worker(broker: brokers.Broker, *options: str | int) -> Iterator[int]:
    """A Celery worker alone in a PID namespace, under a first process that takes orphans; its main process."""
    arguments = [*celery.CELERY, "worker", "--without-mingle", "--without-gossip", "-l", "INFO", *map(str, options)]
    with targets.start(
        arguments, prefix=(*agent.ALONE, *INIT), netns=broker.pair.here, env={"BROKER_URL": broker.url}, cwd=targets.TARGETS, ready=False
    ) as target:  # fmt: skip
        kernel.wait_until(lambda: "ready." in target.log(), "the worker is ready")
        with first_of(target) as init:
            (main,) = kernel.wait_for_children(init, 1)
            yield main


@contextlib.contextmanager
def client(url: str) -> Iterator[None]:
    code = f"import urllib.request; urllib.request.urlopen({url!r}).read()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait(60)


def send(broker: brokers.Broker, task: str, argument: float, count: int) -> None:
    code = f"import celery_app; [celery_app.{task}.delay({argument}) for _ in range({count})]"
    inside = ["ip", "netns", "exec", broker.pair.here, sys.executable, "-c", code]
    subprocess.run(inside, cwd=targets.TARGETS, env=celery.environment(broker), check=True, timeout=120)


@contextlib.contextmanager
def gunicorn_below(*options: str | int | Path) -> Iterator[tuple[int, int, targets.Target]]:
    """gunicorn in a PID namespace whose first process is another; that, the master, and its output."""
    arguments = ["-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", *map(str, options)]
    with targets.start(
        [sys.executable, *arguments, "web_app:application"], prefix=(*agent.ALONE, *INIT), cwd=targets.TARGETS, ready=False
    ) as target:  # fmt: skip
        kernel.wait_until(lambda: "Booting worker" in target.log(), "the first worker")
        with first_of(target) as init:
            (master,) = kernel.wait_for_children(init, 1)
            yield init, master, target


def test_workers_that_die_young_are_a_storm_until_their_master_ends(tmp_path: Path):
    config = tmp_path / "young.py"
    config.write_text(DIES_YOUNG)
    with gunicorn_below("-c", config) as (init, master, _), agent.watching(init) as watcher:
        storm = event(watcher, "opened", "restart-storm")
        assert storm["affected"][0]["pid"] == agent.own_pid(master) and "SIGABRT" in storm["summary"]
        os.kill(master, signal.SIGTERM)
        assert event(watcher, "resolved", "restart-storm")["how"] in ("exited", "killed")
        assert {told["code"] for told in watcher.events} == {"restart-storm"}


@pytest.mark.parametrize("hangs", [True, False])
def test_only_a_worker_that_stays_without_its_master_is_an_orphan(hangs: bool):
    with (
        targets.start("http_holder.py", "deaf") as holder,
        gunicorn_below("--timeout", 4, "-k", "gthread", "--threads", 2) as (init, master, target),
        agent.watching(init) as watcher,
    ):
        (worker,) = kernel.wait_for_children(master, 1)
        port = target.log().partition("http://127.0.0.1:")[2].split()[0]
        with contextlib.ExitStack() as stack:
            if hangs:
                url = f"http://127.0.0.1:{port}/fetch?url=http://127.0.0.1:{holder.said}/"
                stack.enter_context(client(url))
                kernel.wait_until(
                    lambda: any(kernel.in_call(worker, "recvfrom", tid=tid) for tid in kernel.tids(worker))
                )
                kernel.wait_until(lambda: procfs.read_stat(master).age_s > 6, "a master of some age")
            os.kill(master, signal.SIGKILL)
            if hangs:
                orphaned = event(watcher, "opened", "orphaned-worker")
                assert orphaned["affected"][0]["pid"] == agent.own_pid(worker)
                os.kill(worker, signal.SIGKILL)
                assert event(watcher, "resolved", "orphaned-worker")["how"] == "killed"
            else:
                kernel.wait_until(lambda: not kernel.alive(worker), "the worker noticed")
                assert watcher.read(5) is None, agent.summaries(watcher.events)


@pytest.mark.xdist_group("redis")
@pytest.mark.parametrize("limit", ["--max-memory-per-child=1", "--max-tasks-per-child=1"])
def test_children_that_are_too_large_from_the_start_are_a_storm(redis: brokers.Broker, limit: str):
    with redis.client() as broker, celery_worker(broker, "-c", 2, limit) as main, agent.watching(main) as watcher:
        send(broker, "sleep", 0.1, 40)
        if "memory" in limit:
            assert limit in event(watcher, "opened", "restart-storm")["summary"]
        else:
            assert watcher.read(22) is None, agent.summaries(watcher.events)


EATS = """
import os, threading, time
def eat():
    while not os.path.exists(GO):
        time.sleep(0.05)
    held = []
    while True:
        held.append(bytearray(1 << 20))
def post_worker_init(worker):
    if worker.age == 1:
        threading.Thread(target=eat).start()
"""


def test_workers_that_are_replaced_on_purpose_are_no_storm():
    options = ("--max-requests", 1, "--workers", 2, "--graceful-timeout", 2)
    with gunicorn_below(*options) as (init, master, target), agent.watching(init) as watcher:
        kernel.wait_until(lambda: "http://127.0.0.1:" in target.log(), "the port")
        port = int(target.log().partition("http://127.0.0.1:")[2].split()[0])
        for number in range(40):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as one:
                one.settimeout(20)
                one.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while one.recv(65536):
                    pass
            if number % 10 == 9:
                os.kill(master, signal.SIGHUP)
        assert target.log().count("Booting worker") > 30
        assert watcher.read(5) is None, agent.summaries(watcher.events)


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A cgroup with so much memory, in the version that this machine has the controller of."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = {after.split()[0]: before.split()[4] for before, after in mounts if after.startswith("cgroup2 ")}
    found |= {"memory": before.split()[4] for before, after in mounts if after.split()[-1].split(",")[-1] == "memory"}
    folder = Path(found.get("memory") or found["cgroup2"]) / f"stucktrace-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if "memory" in found else "memory.max")).write_text(str(limit_bytes))
        yield folder
    finally:
        kernel.wait_until(lambda: not (folder / "cgroup.procs").read_text(), "an empty cgroup")
        folder.rmdir()


@pytest.mark.parametrize("engine", ["core", "none"])
def test_a_worker_that_the_kernel_kills_for_its_memory(tmp_path: Path, engine: str):
    config = tmp_path / "eats.py"
    go = tmp_path / "go"
    config.write_text(f"GO = {str(go)!r}\n{EATS}")
    with memory_cgroup(256 << 20) as group, gunicorn_below("-c", config) as (init, master, _):
        (worker,) = kernel.wait_for_children(master, 1)
        for pid in (master, worker):
            (group / "cgroup.procs").write_text(str(pid))
        pid = agent.own_pid(worker)
        with agent.watching(init, "--engine", engine) as watcher:
            go.touch()
            killed = event(watcher, "opened", "oom-killed")
            assert killed["affected"][0]["pid"] == pid and "268.4 MB" in killed["summary"], killed["summary"]
            assert killed["confidence"] == ("proven" if engine == "core" else "likely")
            assert {told["code"] for told in watcher.events} == {"oom-killed"}


def test_a_stop_is_told_when_it_lasts():
    """Also of a worker that was found idle, and is left alone for a minute."""
    with (
        agent.gunicorn("-k", "gthread", "--threads", 2, "--timeout", 0) as server,
        agent.watching(server.master, "--stuck-after", 8) as watcher,
    ):
        (worker,) = server.workers
        assert watcher.read(8) is None, agent.summaries(watcher.events)
        os.kill(worker, signal.SIGSTOP)
        opened = watcher.wait_for("opened", 40)
        assert (opened["code"], opened["confidence"]) == ("stopped", "proven"), opened["summary"]
        assert 4 <= opened["affected"][0]["since_s"] < 40
        os.kill(worker, signal.SIGCONT)
        assert watcher.wait_for("resolved")["how"] == "recovered"
