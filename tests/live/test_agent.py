"""`stucktrace agent` beside real gunicorns: it says what hangs while it hangs, how that ends, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.harness import agent, brokers, command, kernel, targets

IDLE = """
import os, queue, socket, threading, time
reader, writer = os.pipe()
listener = socket.create_server(("127.0.0.1", 0))
def poll():
    while True:
        time.sleep(0.5)
for park in (threading.Event().wait, queue.Queue().get, lambda: os.read(reader, 1), listener.accept, poll):
    threading.Thread(target=park, daemon=True).start()
worker = threading.Thread(target=threading.Event().wait)
worker.start()
worker.join()
"""


@pytest.mark.xdist_group("redis")
def test_the_alert_comes_before_gunicorn_kills_the_evidence(redis: brokers.Broker):
    with redis.client() as broker, agent.gunicorn("--timeout", 20, netns=broker.pair.here) as server:
        (worker,) = server.workers
        with server.request(f"/redis?url={broker.url}") as client:
            assert client.wait(120) == 0
        with agent.watching(server.master) as watcher:
            broker.cut()
            with server.request(f"/redis?url={broker.url}"):
                opened = watcher.wait_for("opened")
                assert (opened["code"], opened["count"]) == ("half-open", 1), opened["summary"]
                assert opened["affected"][0]["pid"] == agent.own_pid(worker)
                found = command.Report(opened["report"])
                assert found["process"]["worker"]["seconds_to_kill"] > 0
                assert found.socket()["remote"] == f"{broker.address}:{broker.port}" and found.socket()["unacked"]
                thread = next(thread for thread in found["threads"] if thread["tid"] == found.verdict["tid"])
                assert "ask_redis" in {frame["function"] for frame in thread["python"]}
                resolved = watcher.wait_for("resolved")
                assert (resolved["id"], resolved["how"]) == (opened["id"], "killed")
                assert resolved["duration_s"] > opened["duration_s"]


@pytest.mark.xdist_group("rabbitmq")
def test_a_publisher_without_its_broker_is_told_with_its_request_and_then_its_end(rabbitmq: brokers.Broker):
    with rabbitmq.client() as broker, agent.gunicorn("--timeout", 8, netns=broker.pair.here) as server:
        (worker,) = server.workers
        with server.request(f"/publish?url={broker.url}") as client:
            assert client.wait(120) == 0
        with agent.watching(server.master) as watcher:
            broker.cut()
            with server.request(f"/publish?url={broker.url}"):
                opened = watcher.wait_for("opened")
                assert opened["code"] == "half-open", opened["summary"]
                assert opened["affected"][0]["pid"] == agent.own_pid(worker)
                found = command.Report(opened["report"])
                assert found["process"]["worker"]["seconds_to_kill"] > 0 and found.socket()["unacked"]
                thread = next(thread for thread in found["threads"] if thread["tid"] == found.verdict["tid"])
                assert (thread["work"]["method"], thread["work"]["path"]) == ("GET", "/publish")
                assert "publish" in {frame["function"] for frame in thread["python"]}
                killed = watcher.wait_for("opened")
                assert (killed["code"], killed["affected"][0]["pid"]) == ("worker-timeout", agent.own_pid(worker))
                last = next(other for other in killed["report"]["threads"] if other["tid"] == thread["tid"])
                assert last["python"] == thread["python"] and last["work"]["path"] == "/publish"


@pytest.mark.xdist_group("redis")
def test_what_heals_is_resolved_and_so_is_what_is_killed(redis: brokers.Broker):
    with (
        redis.client() as broker,
        agent.gunicorn("-k", "gthread", "--threads", 2, netns=broker.pair.here) as server,
    ):
        with server.request(f"/redis?url={broker.url}") as client:
            assert client.wait(120) == 0
        with agent.watching(server.master, "--stuck-after", 10) as watcher:
            broker.cut()
            with server.request(f"/redis?url={broker.url}") as client:
                opened = watcher.wait_for("opened")
                assert opened["code"] == "half-open", opened["summary"]
                broker.heal()
                assert client.wait(240) == 0
            resolved = watcher.wait_for("resolved")
            assert (resolved["id"], resolved["how"], resolved["affected"]) == (opened["id"], "recovered", [])
            broker.cut()
            with server.request(f"/redis?url={broker.url}"):
                again = watcher.wait_for("opened")
                assert again["fingerprint"] == opened["fingerprint"] and again["id"] != opened["id"]
                os.kill(server.workers[0], signal.SIGKILL)
                resolved = watcher.wait_for("resolved")
                assert (resolved["id"], resolved["how"]) == (again["id"], "killed")


def test_nothing_is_said_of_what_idles(engine: str):
    with agent.gunicorn("--timeout", 4, workers=2) as sync:
        inside = ["nsenter", "-t", str(sync.master), "-p", "-m"]
        gthread = [
            "-m",
            "gunicorn",
            "-b",
            "127.0.0.1:0",
            "-k",
            "gthread",
            "--threads",
            "4",
            "--no-control-socket",
            "--chdir",
            str(targets.TARGETS),
        ]
        with (
            targets.start([*inside, sys.executable, *gthread, "web_app:application"], ready=False) as threaded,
            targets.start([*inside, sys.executable, "-c", IDLE], ready=False) as idle,
        ):
            kernel.wait_until(lambda: "Booting worker" in threaded.log(), "the threaded worker")
            (waiter,) = kernel.wait_for_children(idle.pid, 1)
            kernel.wait_until(lambda: len(kernel.tids(waiter)) == 7, "its threads")
            options = ("--stuck-after", 2, "--match", "queue", "--engine", engine)
            with agent.watching(sync.master, *options) as watcher:
                assert watcher.read(20) is None, agent.summaries(watcher.events)
                assert watcher.end() == 0
                assert "watching 6 processes" in watcher.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(number: signal.Signals):
    with agent.gunicorn() as server, agent.watching(server.master) as watcher:
        assert watcher.end(number) == 0
        assert watcher.said().count("\n") == 1, watcher.said()


def test_one_agent_a_node():
    with agent.gunicorn() as server, agent.watching(server.master) as watcher:
        there = ["nsenter", "-t", str(watcher.pid), "-p", "-m", "-n"]
        second = command.run("agent", prefix=there)
        assert second.status == 3 and "another agent" in second.stderr and second.stderr.count("\n") == 1
        assert watcher.end() == 0


def test_a_reader_that_left_is_told_in_one_line():
    with agent.gunicorn("-k", "gthread", "--threads", 2) as server, targets.start("http_holder.py", "deaf") as holder:
        with agent.watching(server.master, "--stuck-after", 2) as watcher:
            assert watcher.process.stdout is not None
            watcher.process.stdout.close()
            with server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"):
                assert watcher.process.wait(120) == 3
            assert "could not write" in watcher.said() and watcher.said().count("\n") == 2, watcher.said()


def test_a_bad_pattern_is_a_usage_error():
    done = subprocess.run([command.COMMAND, "agent", "--match", "("], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "regular expression" in done.stderr and done.stderr.count("\n") == 1
