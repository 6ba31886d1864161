"""The text sink: a stranger's data cannot move the terminal, and the answer comes first."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from stucktrace.sinks.page import clean
from stucktrace.sinks.text import render

SCHEMA = json.loads((Path(__file__).parents[2] / "agent" / "report.schema.json").read_text())


def finding(**changed: Any) -> dict[str, Any]:
    return {
        "class": "stuck",
        "code": "half-open",
        "severity": "critical",
        "confidence": "likely",
        "summary": "MainThread has waited 12 s for 10.0.0.5:5672.",
        "evidence": [
            {
                "source": "tcp_info",
                "what": "unacked",
                "value": 1,
                "unit": "segments",
                "time": None,
                "text": "1 segment unacked",
            }
        ],
        "remedy": {
            "now": [{"do": "kill -TERM 7", "risk": "none known", "loses": "the publish"}],
            "later": [{"do": "set TCP_USER_TIMEOUT", "why": "it is 0"}],
        },
        "known_issues": [],
        "tid": 7,
        "fd": 9,
        "lock": None,
        "chain": ["MainThread (tid 7)", "recvfrom on fd 9", "10.0.0.5:5672"],
        "frame": 1,
    } | changed


def report(**changed: Any) -> dict[str, Any]:
    verdict = finding()
    thread = {
        "tid": 7,
        "ns_tid": 7,
        "name": "MainThread",
        "state": "S",
        "on_cpu_s": 0.1,
        "syscall": {"name": "recvfrom", "args": ["0x9"], "fd": 9, "timeout_s": None},
        "blocked_s": 12.0,
        "blocked_since_source": "iter/task",
        "owns_gil": False,
        "python": [
            {"function": "read_frame", "file": "/v/site-packages/amqp/transport.py", "line": 1},
            {"function": "basic_publish_confirm", "file": "/v/site-packages/amqp/channel.py", "line": 2},
        ],
        "native": [],
        "work": None,
        "waits_for": {"kind": "socket", "ref": "10.0.0.5:5672"},
    }
    worker = dict.fromkeys(
        ("class", "pool", "timeout_s", "timeout_source", "seconds_to_kill", "last_notify_s", "concurrency", "threads")
    )
    return {
        "schema": "stucktrace.report/1",
        "time": 1.0,
        "tool": {"version": "0"},
        "host": {"node": "n", "kernel": "6", "boot_id": "b"},
        "verdict": verdict,
        "findings": [verdict],
        "process": {
            "pid": 7,
            "ns_pid": 7,
            "start_time": 1,
            "kind": "python",
            "role": None,
            "argv": ["python", "app.py"],
            "ppid": 1,
            "age_s": 60.0,
            "rss_bytes": 1,
            "fd_count": 4,
            "state": "S",
            "python": {"version": "3.11.2", "executable": "/usr/bin/python3"},
            "packages": {},
            "worker": worker,
            "container": None,
        },
        "threads": [thread],
        "sockets": [],
        "locks": [],
        "pools": [],
        "greenlets": [],
        "graph": {"nodes": [], "edges": []},
        "children": [],
        "siblings": None,
        "seen": {"engine": "core", "hooks": {}, "lost_records": 0, "paused_at_most_s": None, "missing": []},
        "timings_ms": {"total": 100.0},
    } | changed


def test_the_literal_report_follows_the_schema() -> None:
    import jsonschema

    jsonschema.validate(report(), SCHEMA)


def test_every_object_of_the_schema_is_closed() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert "additionalProperties" in node
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(SCHEMA)


def test_the_order_is_verdict_chain_stack_evidence_remedy() -> None:
    text = render(report())
    places = [
        text.index(words)
        for words in (
            "half-open (likely)",
            "MainThread has waited",
            "recvfrom on fd 9",
            "Python stack",
            "1 segment",
            "Do now",
            "Change later",
        )
    ]
    assert places == sorted(places)


def test_the_frame_that_matters_is_marked() -> None:
    assert "  > basic_publish_confirm (amqp/channel.py:2)" in render(report())


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x1b]0;x\x07", "a\rb", "\u202eabc", "a\nb", "\x9b1m", "\udcff"])
def test_what_the_target_says_cannot_move_the_cursor(hostile: str) -> None:
    assert clean(hostile).isprintable()
    written = copy.deepcopy(report())
    written["process"]["argv"] = [hostile]
    written["process"]["kind"] = "other"
    written["threads"][0]["name"] = hostile
    written["threads"][0]["python"][0]["function"] = hostile
    written["verdict"]["summary"] = hostile
    text = render(written, verbose=True)
    assert all(line.isprintable() for line in text.splitlines() if line)
    text.encode()


def test_what_the_verdicts_thread_serves_stands_below_the_verdict() -> None:
    served = report()
    work = {"kind": "request", "name": "GET /\x1b[2J", "id": None, "age_s": 12.0, "method": "GET", "path": "/\x1b[2J"}
    served["threads"][0]["work"] = work | {"peer": "10.0.0.9:4242"}
    text = render(served)
    assert "serving GET /\\x1b[2J from 10.0.0.9:4242 for 12 s\n\nWho waits" in text
    task = {
        "kind": "task",
        "name": "shop.bill",
        "id": "5f3c",
        "age_s": None,
        "method": None,
        "path": None,
        "peer": None,
    }
    served["threads"][0]["work"] = task
    assert "running task shop.bill, id 5f3c\n" in render(served)
    served["threads"][0]["tid"] = 8
    assert "running" not in render(served)
    assert "      running task shop.bill, id 5f3c\n" in render(served, verbose=True)


def test_colour_only_when_asked() -> None:
    assert "\x1b" not in render(report())
    assert "\x1b[31;1m" in render(report(), colour=True)


def test_it_fits_a_screen_and_verbose_shows_all() -> None:
    many = report()
    many["threads"][0]["python"] = [{"function": f"f{n}", "file": "/a/b.py", "line": n} for n in range(200)]
    many["verdict"]["frame"] = 150
    many["verdict"]["evidence"] *= 40
    short = render(many)
    assert len(short.splitlines()) < 50
    assert "  > f150" in short
    assert "f199" in render(many, verbose=True)


def test_what_could_not_be_seen_is_said() -> None:
    missing = [{"what": "Python stacks", "because": "py-spy is missing", "remedy": "pip install py-spy"}]
    text = render(
        report(seen={"engine": "none", "hooks": {}, "lost_records": 3, "paused_at_most_s": 0.25, "missing": missing})
    )
    assert "py-spy is missing. Remedy: pip install py-spy" in text
    assert "3 kernel records were lost" in text
    assert "stood still, 0.3 s at most" in text or "stood still, 0.2 s at most" in text


@pytest.mark.parametrize(
    ("last_notify_s", "words"),
    [(12.5, "18 s until gunicorn kills it"), (0.7, "whose heartbeat goes on: gunicorn does not kill it")],
    ids=["the thread that beats hangs itself", "another thread beats on"],
)
def test_when_gunicorn_kills_the_worker(last_notify_s: float, words: str):
    given = report()
    given["process"]["worker"] |= {"last_notify_s": last_notify_s, "seconds_to_kill": 30.0 - last_notify_s}
    assert words in render(given).splitlines()[0]


def test_the_holder_of_a_lock_has_its_stack_shown_and_the_frame_marked_that_holds_it():
    given = report()
    waits, holds = given["threads"][0], {**given["threads"][0], "tid": 8, "name": "Thread-1"}
    inner, outer = holds["python"]
    owner = {"pid": 7, "tid": 8, "name": "Thread-1", "state": "alive", "how": "with block", "assumes": None}
    given["threads"] = [waits, holds]
    given["locks"] = [
        {
            "address": "0x10",
            "kind": "lock",
            "mapping": "[heap]",
            "path": None,
            "part_of": None,
            "owners": [{**owner, "frame": outer, "taken": {**outer, "line": 99}}],
            "waiters": [{"pid": 7, "tid": 7}],
        }
    ]
    lines = render(given).splitlines()
    heading = next(number for number, line in enumerate(lines) if "stack of Thread-1 (tid 8)" in line)
    marked = [line for line in lines if "<-" in line]
    assert marked == [lines[heading + 2]]
    assert "basic_publish_confirm" in marked[0]
    assert marked[0].endswith("<- holds what MainThread waits for, taken in line 99")


def test_the_answer_to_a_probe_is_told_whatever_the_verdict_is() -> None:
    """Even of a master whose proof is left out for its children."""
    healthy = finding(**{"class": "healthy"}, code="idle", confidence="likely")
    child = {"pid": 8, "role": "", "verdict": {"class": "healthy", "code": "idle", "summary": "is idle"}}
    asked = {"fd": 17, "probe": {"answer": "alive", "text": "the TCP of 10.0.0.5:5672 acknowledged a probe"}}
    text = render(report(verdict=healthy, children=[child], sockets=[asked, {"fd": 18, "probe": None}]))
    assert "fd 17: the TCP of 10.0.0.5:5672 acknowledged a probe" in text and "fd 18" not in text
    assert "Probe" not in render(report(verdict=healthy))
