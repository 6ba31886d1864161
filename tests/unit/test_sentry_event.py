"""The bounds of Sentry's event payload, and which frames are the application's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stucktrace.errors import UsageError
from stucktrace.sinks import sentry_event
from stucktrace.sinks.sentry import Sentry
from stucktrace.sinks.sink import Item

Json = dict[str, Any]


def frame(path: str, function: str = "f") -> Json:
    return {"function": function, "file": path, "line": 7}


def thread(tid: int, *frames: Json, native: tuple[Json, ...] = (), name: str = "worker") -> Json:
    return {"tid": tid, "name": name, "python": list(frames), "native": list(native), "work": None}


def build(*threads: Json, tid: int) -> Json:
    verdict = {
        "tid": tid,
        "fd": None,
        "evidence": [],
        "chain": [],
        "known_issues": [],
        "remedy": {"now": [], "later": []},
    }
    worker = {"class": None, "pool": None, "timeout_s": None, "seconds_to_kill": None}
    process = {
        "pid": 1, "ns_pid": 1, "kind": "python", "argv": ["python"], "age_s": 1.0, "rss_bytes": 1, "fd_count": 3, "worker": worker,
        "container": None, "packages": {}, "python": None,
    }  # fmt: skip
    report = {
        "verdict": verdict,
        "process": process,
        "threads": list(threads),
        "sockets": [],
        "host": {"kernel": "6.1"},
    }
    event = {
        "id": "a", "type": "opened", "time": 1.0, "fingerprint": "f", "code": "deadlock", "severity": "critical",
        "confidence": "proven", "summary": "stuck", "count": 1, "affected": [], "duration_s": 1.0, "how": None, "node": "n",
        "report": report,
    }  # fmt: skip
    return sentry_event.build(Item(event), sentry_event.tags(event), environment="", server_name="")


@pytest.mark.parametrize(
    ("path", "filename", "in_app"),
    [
        ("/srv/shop/views.py", "/srv/shop/views.py", True),
        ("/usr/src/app/lib/util.py", "/usr/src/app/lib/util.py", True),
        ("<string>", "<string>", True),
        ("/srv/venv/lib/python3.12/site-packages/celery/app/trace.py", "celery/app/trace.py", False),
        ("/usr/lib/python3/dist-packages/requests/api.py", "requests/api.py", False),
        ("/usr/lib/python3.11/threading.py", "threading.py", False),
        ("/opt/python/3.13t/lib/python3.13t/socket.py", "socket.py", False),
        ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap>", False),
        ("/srv/venv/bin/gunicorn", "/srv/venv/bin/gunicorn", False),
    ],
)
def test_frames_of_the_application(path, filename, in_app):
    (written,) = build(thread(5, frame(path)), tid=5)["threads"]["values"][0]["stacktrace"]["frames"]
    assert (written["filename"], written["abs_path"], written["in_app"]) == (filename, path, in_app)


def test_native_frames_are_marked_and_lie_where_they_belong():
    native = (
        {**frame("/lib/libc.so.6", "recv"), "inside": 0},
        {**frame("/lib/libc.so.6", "qsort"), "inside": 1},
    )
    frames = build(thread(5, frame("/srv/a.py", "wait"), native=native), tid=5)["threads"]["values"][0]["stacktrace"][
        "frames"
    ]
    assert [(frame["function"], frame.get("platform")) for frame in frames] == [
        ("qsort", "native"),
        ("wait", None),
        ("recv", "native"),
    ]


def test_a_process_with_many_threads_is_cut_to_what_sentry_takes():
    deep = [frame(f"/srv/{'long/' * 50}{number}.py", "g" * 250) for number in range(300)]
    threads = [thread(tid, *deep, name="\x1b[2J" + "n" * 1000) for tid in range(1, 201)]
    payload = build(*threads, tid=150)
    values = payload["threads"]["values"]
    assert 1 <= len(values) <= 50 and values[0]["id"] == 150 and values[0]["current"]
    assert all(len(value["stacktrace"]["frames"]) == 100 for value in values)
    assert values[0]["stacktrace"]["frames"][-1]["abs_path"].endswith("/0.py"), "the innermost is kept"
    assert len(json.dumps(payload)) < 1_000_000 and "\x1b" not in values[0]["name"]


@pytest.mark.parametrize(
    "dsn", ["", "secret", "https://host/1", "https://secret@host/", "ftp://secret@host/1", "http://secret@host:x/1"]
)
def test_what_is_no_dsn_is_told_without_it(dsn):
    with pytest.raises(UsageError) as caught:
        Sentry(dsn)
    assert "secret" not in caught.value.message + caught.value.remedy
