"""Real gunicorn: idle workers of three classes, and requests that hold a worker."""

from __future__ import annotations

import pytest

from tests.harness import command, gunicorn, kernel, targets
from tests.live.conftest import ENGINES

PARKED = {"sync": ("select", "pselect6"), "gthread": ("epoll_wait",), "gevent": ("epoll_wait", "epoll_pwait")}


@pytest.mark.parametrize("worker_class", PARKED)
def test_idle_workers_and_their_master(worker_class):
    with gunicorn.serve("-k", worker_class, "--timeout", 77, workers=2) as server:
        with server.request("/") as client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        for worker in server.workers:
            kernel.wait_for_call(worker, *PARKED[worker_class])
        for engine in ENGINES:
            for worker in server.workers:
                report = command.check(worker, "idle", "--engine", engine)
                assert report["process"]["kind"] == "gunicorn-worker"
                limits = report["process"]["worker"]
                assert (limits["class"], limits["timeout_s"]) == (worker_class, 77)
                assert 0 < limits["seconds_to_kill"] <= 77
            report = command.explain(server.master, "--engine", engine)
            assert report["process"]["kind"] == "gunicorn-master"
            assert report.verdict["class"] == "healthy", report.text()
            assert {child["pid"]: child["verdict"]["code"] for child in report["children"]} == dict.fromkeys(
                server.workers, "idle"
            )


def test_limits_that_a_title_hides():
    """setproctitle has replaced the command line: what is not known is not guessed, and named."""
    with gunicorn.serve("--timeout", 77, workers=1, titled=True) as server:
        (worker,) = server.workers
        kernel.wait_for_call(worker, *PARKED["sync"])
        for engine in ENGINES:
            report = command.check(worker, "idle", "--engine", engine)
            assert report["process"]["worker"]["timeout_s"] in (77, None)
            if report["process"]["worker"]["timeout_s"] is None:
                assert any("timeout" in missing["what"] for missing in report["seen"]["missing"]), report.text()


def long_wait(pid: int, *calls: str, tid: int | None = None, seconds: float = 6) -> None:
    """The thread has slept in one of these calls for longer than what a protocol owes at once may take."""
    kernel.wait_for_call(pid, *calls, tid=tid)
    kernel.wait_until(lambda: kernel.asleep_s(pid, tid) > seconds, f"{seconds} s in {calls}")


def test_a_client_that_sends_nothing():
    with gunicorn.serve("--timeout", 600) as server, server.connect():
        (worker,) = server.workers
        long_wait(worker, "recvfrom")
        for engine in ENGINES:
            report = command.check(worker, "slow-client", "--engine", engine)
            assert report.socket()["direction"] == "in"
            (child,) = command.explain(server.master, "--engine", engine)["children"]
            assert (child["pid"], child["verdict"]["code"]) == (worker, "slow-client")


def test_a_client_that_does_not_read():
    with gunicorn.serve("--timeout", 600) as server, server.request("/big"):
        (worker,) = server.workers
        long_wait(worker, "sendto")
        for engine in ENGINES:
            report = command.check(worker, "peer-not-reading", "--engine", engine)
            assert report.socket()["queues"]["send_bytes"] > 0


def test_a_request_to_itself():
    with gunicorn.serve("--timeout", 600) as server, server.request("/self"):
        (worker,) = server.workers
        long_wait(worker, "recvfrom")
        for engine in ENGINES:
            report = command.check(worker, "self-call", "--engine", engine)
            assert str(server.port) in report.summary, report.summary


def test_a_pool_that_waits_for_itself():
    """One worker asks the other, and that one asks the pool, where nobody is left."""
    with gunicorn.serve("--timeout", 600, workers=2) as server, server.request("/self/self"):
        for worker in server.workers:
            long_wait(worker, "recvfrom")
        for engine in ENGINES:
            reports = [command.explain(worker, "--engine", engine) for worker in server.workers]
            assert "self-call" in [report.code for report in reports], "\n".join(report.text() for report in reports)
            assert command.run("pid", server.master, "--engine", engine).status == 1


def test_a_hung_request_is_judged_beside_an_idle_loop():
    """gunicorn's timeout watches the main loop of a gthread worker alone: nobody ends this request."""
    with (
        targets.start("http_holder.py", "deaf") as holder,
        gunicorn.serve("-k", "gthread", "--threads", 4, "--timeout", 5) as server,
        server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"),
    ):
        (worker,) = server.workers
        hung = kernel.wait_until(
            lambda: next(
                (
                    tid
                    for tid in kernel.tids(worker)
                    if kernel.in_call(worker, "recvfrom", tid=tid) and kernel.asleep_s(worker, tid) > 1
                ),
                0,
            ),
            "the call",
        )
        long_wait(worker, "recvfrom", tid=hung, seconds=8)
        for engine in ENGINES:
            report = command.check(worker, "peer-silent", "--engine", engine)
            assert report.verdict["tid"] == hung
            assert f"127.0.0.1:{holder.said}" in report.summary, report.summary
        assert kernel.children(server.master) == [worker]


@pytest.mark.xdist_group("postgresql")
def test_a_gevent_worker_whose_hub_sits_in_a_c_library(postgresql):
    """psycopg2 waits in C, where gevent cannot switch: no other request of this worker is served meanwhile."""
    with (
        postgresql.client() as network,
        gunicorn.serve("-k", "gevent", "--timeout", 600, netns=network.pair.here) as server,
        targets.start(
            "http_client.py", "urllib", f"{server.url}/sql?url={network.url}", netns=network.pair.here
        ) as client,
    ):
        (worker,) = server.workers
        long_wait(worker, "poll")
        for engine in ENGINES:
            report = command.explain(worker, "--engine", engine)
            assert report.verdict["class"] == "stuck" and "blocked-loop" in report.codes, report.text()
            assert "run_sql" in report.text()
        # Its client waits for a worker that lives, inside its budget.
        kernel.wait_for_call(client.pid, "recvfrom")
