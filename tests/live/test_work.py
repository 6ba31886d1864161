"""What a thread serves: named in the report as its client or sender knows it, and nothing more of it than that."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from tests.harness import celery, command, gunicorn, kernel, pythons, targets

QUERY, HEADER, BODY = "query-4f1d", "header-9a7c", "body-e02b"
SLEEPS = ("clock_nanosleep", "select", "pselect6")
INTERPRETERS = [
    pytest.param(path, id=pythons.name_of(path))
    for path in pythons.interpreters()
    if not pythons.name_of(path).startswith(("3.6", "3.7"))
]
SERVED = f"/orders/caf%C3%A9?token={QUERY}"


@contextlib.contextmanager
def asked(port: int, target: str = SERVED):
    """A client that has sent a whole request with secrets in it; its own "address:port"."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        lines = [f"POST {target} HTTP/1.1", "Host: shop", f"Authorization: Bearer {HEADER}", f"Cookie: s={HEADER}"]
        client.sendall("\r\n".join([*lines, f"Content-Length: {len(BODY)}", "", BODY]).encode())
        yield "{}:{}".format(*client.getsockname())


def hangs(pid: int, *calls: str, threads: int = 1) -> None:
    """So many of its threads have slept in one of these calls for a while."""

    def waiting() -> bool:
        found = [tid for tid in kernel.tids(pid) if kernel.in_call(pid, *calls, tid=tid)]
        return sum(kernel.asleep_s(pid, tid) > 1 for tid in found) >= threads

    kernel.wait_until(waiting, f"{threads} threads in {calls}")


def works(report: command.Report) -> list[dict]:
    return [thread["work"] for thread in report["threads"] if thread["work"]]


def leaks(report: command.Report, *secrets: str) -> list[str]:
    everything = json.dumps(report, ensure_ascii=False) + report.text()
    return [secret for secret in secrets if secret in everything]


def is_orders(report: command.Report, peer: str) -> dict:
    """The one work in this report is the request of `asked`, and its secrets are nowhere."""
    assert leaks(report, QUERY, HEADER, BODY) == []
    (work,) = works(report)
    assert work == {
        "kind": "request", "name": "POST /orders/café", "id": None, "age_s": work["age_s"],
        "method": "POST", "path": "/orders/café", "peer": peer,
    }  # fmt: skip
    assert "serving POST /orders/café from " + peer in report.text()
    return work


@pytest.mark.parametrize(
    ("app", "zone"), [("application", "UTC"), ("renamed", "Asia/Kolkata"), ("renamed", "America/New_York")]
)
def test_a_request_in_a_sync_worker(app, zone):
    with (
        gunicorn.serve("--timeout", 600, app=f"serving:{app}", env={"TZ": zone}) as server,
        asked(server.port) as peer,
    ):
        (worker,) = server.workers
        hangs(worker, "futex")
        report = command.explain(worker)
        work = is_orders(report, peer)
        (thread,) = report["threads"]
        assert thread["blocked_s"] - 0.1 <= work["age_s"] <= thread["blocked_s"] + 60


def test_requests_in_a_threaded_worker():
    with (
        gunicorn.serve("-k", "gthread", "--threads", 3, app="serving:application") as server,
        asked(server.port, "/one?a=1") as one,
        asked(server.port, "/two;v=2") as two,
    ):
        (worker,) = server.workers
        hangs(worker, "futex", threads=2)
        report = command.explain(worker)
        found = {work["name"]: work["peer"] for work in works(report)}
        assert found == {"POST /one": one, "POST /two;v=2": two}
        assert next(thread for thread in report["threads"] if thread["tid"] == worker)["work"] is None
        assert leaks(report, HEADER, BODY) == []


def test_a_request_in_a_gevent_worker():
    with gunicorn.serve("-k", "gevent", app="serving:blocking") as server, asked(server.port) as peer:
        (worker,) = server.workers
        hangs(worker, "clock_nanosleep")
        is_orders(command.explain(worker), peer)


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_a_request_in_an_asgi_server(where):
    path = SERVED if where == "loop" else SERVED.replace("/orders", "/thread/orders")
    with targets.start("serving.py", "h11") as target, asked(int(target.said), path) as peer:
        hangs(target.pid, "futex")
        report = command.explain(target.pid)
        assert leaks(report, QUERY, HEADER, BODY) == []
        (work,) = works(report)
        assert (work["method"], work["path"], work["peer"]) == (
            "POST",
            path.partition("?")[0].replace("%C3%A9", "é"),
            peer,
        )


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_a_worker_between_two_requests_serves_nothing(worker_class):
    with gunicorn.serve("-k", worker_class) as server:
        with server.request("/") as client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        (worker,) = server.workers
        kernel.wait_for_call(worker, "select", "pselect6", "epoll_wait")
        assert works(command.check(worker, "idle")) == []


INTERPRETER = """
import socket, sys, threading, time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

def hang(*_):
    print("ready", "%s:%s" % client.getsockname())
    time.sleep(600)

def application(environ, start_response):
    hang()

def build_tracer(name):
    def trace_task(uuid, args, kwargs, request=None):
        time_start = time.monotonic()
        hang()
        return name, time_start
    return trace_task

server = WSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
server.set_app(application)
client = socket.create_connection(server.server_address)
client.sendall(b"GET /orders/7?token=query-4f1d HTTP/1.1\\r\\nHost: shop\\r\\nCookie: header-9a7c\\r\\n\\r\\n")
if sys.argv[1] == "request":
    threading.Thread(target=server.handle_request).start()
else:
    build_tracer("shop.tasks.bill")("5f3c", ("body-e02b",), {}, {"argsrepr": "body-e02b"})
"""


@pytest.mark.parametrize("python", INTERPRETERS)
@pytest.mark.parametrize("kind", ["request", "task"])
def test_every_interpreter(python, kind, tmp_path):
    """The standard library's own server; the task is in a stand-in for Celery's file, which these do not have."""
    file = tmp_path / "celery" / "app" / "trace.py"
    file.parent.mkdir(parents=True)
    file.write_text(INTERPRETER)
    run = f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')"
    with pythons.run(run, kind, python=python) as child:
        pythons.until(lambda: any(pythons.in_call(child.pid, call) for call in SLEEPS), "it hangs")
        report = command.explain(child.pid)
        assert leaks(report, QUERY, HEADER, BODY) == []
        (work,) = works(report)
        if kind == "request":
            assert (work["name"], work["path"]) == ("GET /orders/7", "/orders/7")
            assert work["peer"] == "127.0.0.1"
        else:
            assert (work["name"], work["id"]) == ("shop.tasks.bill", "5f3c")
            assert 0 <= work["age_s"] <= report["process"]["age_s"] + 60


@pytest.mark.xdist_group("redis")
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_task_that_hangs(redis, pool):
    with (
        targets.start("http_holder.py", "deaf", netns=redis.pair.here) as deaf,
        celery.worker(redis, "--pool", pool, children=2 if pool == "prefork" else 0) as worker,
    ):
        task_id = worker.send("fetch", f"http://127.0.0.1:{deaf.said}/{QUERY}")
        pids = worker.children or (worker.main,)

        def fetches(pid: int, tid: int) -> bool:
            return kernel.in_call(pid, "recvfrom", tid=tid) and kernel.asleep_s(pid, tid) > 1

        def running() -> int | None:
            return next((pid for pid in pids for tid in kernel.tids(pid) if fetches(pid, tid)), None)

        pid = kernel.wait_until(running, "the task waits for its reply")
        # What is read from memory has a tenth of a second, which a busy machine can take away.
        reports: list[command.Report] = []
        kernel.wait_until(lambda: reports.append(command.explain(pid)) or works(reports[-1]), "the work that is read")
        report = reports[-1]
        assert leaks(report, QUERY) == []
        (thread,) = [thread for thread in report["threads"] if thread["work"]]
        work = thread["work"]
        assert (work["kind"], work["name"], work["id"]) == ("task", "celery_app.fetch", task_id)
        assert thread["blocked_s"] - 0.1 <= work["age_s"] <= thread["blocked_s"] + 60
        assert f"running task celery_app.fetch, id {task_id}, for " in report.text()
        for idle in worker.children:
            if idle != report["process"]["pid"]:
                assert works(command.check(idle, "idle")) == []
