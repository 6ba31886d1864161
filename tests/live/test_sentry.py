"""The Sentry sink and the spool, against a stand-in for Sentry on loopback: what arrives, and that it arrives once."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from stucktrace.alerts import RECOVERED, Alerts, Member, Observed
from stucktrace.sinks.delivery import Item

from tests.harness import agent, command, kernel, namespaces, sender, sentry_server, targets

Event = dict[str, Any]


@functools.cache
def report() -> Event:
    """Of a real gunicorn worker whose request hangs in another server."""
    with (
        agent.gunicorn("-k", "gthread", "--threads", 3) as server,
        targets.start("http_holder.py", "deaf") as holder,
        server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"),
    ):
        (worker,) = server.workers
        found: list[command.Report] = []

        def stuck() -> bool:
            found[:] = [command.explain(worker, "--stuck-after", 1)]
            return found[0].code == "peer-silent"

        kernel.wait_until(stuck, "a verdict on the held request")
        return dict(found[0])


def alert(number: int = 0) -> tuple[Event, Event, Event]:
    """One alert's events, made by the product: opened with the report, updated, resolved."""
    alerts, first = Alerts("node-7"), report()
    other = {**first, "verdict": {**first["verdict"], "confidence": "proven"}}
    alerts.observe(
        Observed(
            Member(10 + number, 1, "shop-1"), 990.0, {**first, "verdict": {**first["verdict"], "confidence": "likely"}}
        )
    )
    (opened,) = alerts.tick(time.time())
    alerts.observe(Observed(Member(11 + number, 2), 991.0, other))
    (updated,) = alerts.tick(time.time())
    for member in list(alerts.members()):
        alerts.left(member, RECOVERED)
    (resolved,) = alerts.tick(time.time())
    for event in (opened, updated, resolved):
        agent.validate(event)
    return opened, updated, resolved


def opened(count: int) -> list[Event]:
    return [alert(number)[0] for number in range(count)]


def order(events: list[Event]) -> list[str]:
    return [event["contexts"]["alert"]["id"] for event in events]


def files(spool: Path) -> list[str]:
    return sorted(os.listdir(spool / "sentry"))


def test_an_event_is_what_sentry_renders():
    timeline = [{"time": 1000.5, "category": "tcp", "message": "retransmit\x1b[2J of 127.0.0.1:80", "pid": 12}]
    with sentry_server.running() as server, sender.sending(server.dsn) as child:
        events = alert()
        child.put(events[0], timeline=timeline)
        child.put(*events[1:])
        first, second, third = server.wait_for(3)
        assert child.drain()["delivered"] == 3 and child.said() == []
    found = command.Report(report())
    thread = next(thread for thread in found["threads"] if thread["tid"] == found.verdict["tid"])
    assert len(found["threads"]) > 1 and thread["python"]

    assert len({event["event_id"] for event in (first, second, third)}) == 3
    assert first["fingerprint"] == second["fingerprint"] == third["fingerprint"] == [events[0]["fingerprint"]]
    assert [event["level"] for event in (first, second, third)] == ["error", "fatal", "info"]
    assert (first["environment"], first["server_name"]) == ("testing", "node-7")
    assert (first["timestamp"], first["message"]) == (events[0]["time"], events[0]["summary"])
    assert "recovered" in third["message"] and "2 processes" in third["message"]

    assert {(entry["id"], entry["name"]) for entry in first["threads"]["values"]} == {
        (entry["tid"], entry["name"]) for entry in found["threads"]
    }
    (current,) = [entry for entry in first["threads"]["values"] if entry["current"]]
    (exception,) = first["exception"]["values"]
    assert current["id"] == exception["thread_id"] == thread["tid"]
    assert (exception["type"], exception["value"]) == ("peer-silent", events[0]["summary"])
    frames = current["stacktrace"]["frames"]
    assert exception["stacktrace"]["frames"] == frames
    assert [(frame["function"], frame["abs_path"], frame.get("lineno")) for frame in reversed(frames)] == [
        (frame["function"], frame["file"], frame["line"]) for frame in thread["python"]
    ]
    ours = {frame["function"] for frame in frames if frame["in_app"]}
    assert ours <= {frame["function"] for frame in frames if "/tests/targets/" in frame["abs_path"]} and ours
    assert {"gunicorn/workers/gthread.py", "http/client.py"} <= {
        frame["filename"] for frame in frames if not frame["in_app"]
    }
    assert "http.client" in {frame.get("module") for frame in frames}

    tags = first["tags"]
    assert tags["peer"] == found.socket()["remote"] and tags["worker"] == found["process"]["kind"]
    assert (tags["node"], tags["pod"], tags["code"], tags["confidence"]) == (
        "node-7",
        "shop-1",
        "peer-silent",
        "likely",
    )
    assert tags["worker_class"] == "gthread"
    assert tags["request"] == "GET /fetch" == first["transaction"] == first["contexts"]["work"]["name"]
    assert third["tags"]["peer"] == tags["peer"] and second["tags"]["confidence"] == "proven"
    assert "?url=" not in json.dumps(first)
    assert first["contexts"]["remedy"]["now"] and first["contexts"]["verdict"]["evidence"]
    (crumb,) = first["breadcrumbs"]["values"]
    assert (crumb["timestamp"], crumb["category"], crumb["data"]) == (1000.5, "tcp", {"pid": 12})
    assert crumb["message"] == "retransmit\\x1b[2J of 127.0.0.1:80"

    kind, content = server.accepted[0].attachments["report.json"]
    assert (kind, json.loads(content)) == ("application/json", events[0]["report"])
    assert not server.accepted[1].attachments and not server.accepted[2].attachments


def test_the_agent_killed_with_9_says_it_once_after_its_next_start(tmp_path):
    spool = tmp_path / "spool"
    with (
        namespaces.pair() as pair,
        sentry_server.running(netns=pair.here) as sentry,
        agent.gunicorn("-k", "gthread", "--threads", 2, netns=pair.here) as server,
        targets.start("http_holder.py", "deaf", netns=pair.here) as holder,
    ):
        options = ("--stuck-after", 5, "--sentry-dsn", sentry.dsn, "--spool", spool)
        sentry.stop()
        with server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"):
            with agent.watching(server.master, *options, netns=pair.here) as watcher:
                opened = watcher.wait_for("opened")
                assert opened["code"] == "peer-silent", opened["summary"]
                kernel.wait_until(lambda: len(files(spool)) == 1, "an item in the spool")
                kernel.wait_until(lambda: list(watcher.journals.glob("*.journal")), "the journal")
                watcher.end(signal.SIGKILL)
            sentry.start()
            with agent.watching(server.master, *options, netns=pair.here) as watcher:
                (first,) = sentry.wait_for(1)[:1]
                assert first["event_id"] == Item(opened).id.hex
                assert json.loads(sentry.accepted[0].attachments["report.json"][1]) == opened["report"]
                again = watcher.wait_for("opened")
                os.kill(holder.pid, signal.SIGKILL)
                resolved = watcher.wait_for("resolved")
                kernel.wait_until(lambda: Item(resolved).id.hex in sentry.seen, "the resolved event")
                assert watcher.end() == 0
                assert sentry_server.KEY not in watcher.said()
        assert sentry.events[-1]["level"] == "info" and "recovered" in sentry.events[-1]["message"]
        assert [event["event_id"] for event in sentry.events] == list(
            dict.fromkeys(
                Item(event).id.hex for event in (opened, again, *watcher.events) if Item(event).id.hex in sentry.seen
            )
        )
        assert {event["fingerprint"][0] for event in sentry.events} == {opened["fingerprint"]}
        assert set(sentry.seen.values()) == {1} and files(spool) == []


def test_a_stdout_that_nobody_reads_holds_up_nobody():
    with (
        namespaces.pair() as pair,
        sentry_server.running(netns=pair.here) as sentry,
        agent.gunicorn("-k", "gthread", "--threads", 2, netns=pair.here) as server,
        targets.start("http_holder.py", "deaf", netns=pair.here) as holder,
        agent.watching(server.master, "--stuck-after", 5, "--sentry-dsn", sentry.dsn, netns=pair.here) as watcher,
    ):
        assert watcher.process.stdout is not None
        assert fcntl.fcntl(watcher.process.stdout, fcntl.F_SETPIPE_SZ, 4096) == 4096, "room for a part of one event"
        with server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"):
            (event,) = sentry.wait_for(1)
            kernel.wait_until(
                lambda: any(kernel.in_call(watcher.pid, "write", tid=tid) for tid in kernel.tids(watcher.pid))
            )
            os.kill(holder.pid, signal.SIGKILL)
            _, resolved = sentry.wait_for(2)
        assert (resolved["fingerprint"], resolved["level"]) == (event["fingerprint"], "info")
        began = time.monotonic()
        assert watcher.end() == 0 and time.monotonic() - began < 30
        assert "stdout: 2 alerts could not be delivered; 2 are lost" in watcher.said()


def test_a_server_that_was_gone_has_every_event_once_and_in_order(tmp_path):
    spool = tmp_path / "spool"
    with sentry_server.running() as server, sender.sending(server.dsn, spool) as child:
        events = opened(8)
        child.put(events[0])
        server.wait_for(1)
        server.stop()
        child.put(*events[1:4])
        kernel.wait_until(lambda: len(files(spool)) == 3, "items in the spool")
        assert {oct((spool / "sentry" / name).stat().st_mode & 0o777) for name in files(spool)} == {"0o600"}
        assert oct((spool / "sentry").stat().st_mode & 0o777) == "0o700"
        kernel.wait_until(lambda: child.status()["last_error"], "the first failure")
        # Taken, but the answer is lost; then errors of all kinds.
        refusing = sentry_server.Answer
        server.answers.extend([sentry_server.DROP, refusing(500), refusing(503, {"Retry-After": "1"})])
        server.start()
        child.put(*events[4:])
        assert order(server.wait_for(8)) == [event["id"] for event in events]
        status = child.drain()
        assert (status["delivered"], status["pending"], status["dropped"], status["refused"]) == (8, 0, 0, 0)
        assert files(spool) == []
        assert sum(server.seen.values()) == 9, "one came twice, with the same id"
        first, last = child.said()
        assert "localhost" in first and "Connection refused" in first and "works again" in last
        assert sentry_server.KEY not in first + last


def test_killed_with_9_and_started_again(tmp_path):
    spool = tmp_path / "spool"
    with sentry_server.running() as server:
        server.always = sentry_server.HANG
        events = opened(5)
        with sender.sending(server.dsn, spool) as child:
            child.put(*events[:4])
            kernel.wait_until(lambda: len(files(spool)) == 4 and server.requests, "items in the spool, one under way")
            child.kill()
        # What lies there is not all ours, and not all whole.
        folder = spool / "sentry"
        whole = (folder / files(spool)[1]).read_bytes()
        (folder / files(spool)[1]).write_bytes(whole[: len(whole) // 2])
        (folder / "00000000000000000002.item.bak").write_text("foreign")
        (folder / "00000000000000000077.new").write_bytes(whole[:100])
        (folder / "00000000000000000078.item").write_bytes(os.urandom(2000))
        (folder / "README").write_text("foreign")
        server.always = None
        with sender.sending(server.dsn, spool) as child:
            child.put(events[4])
            wanted = [events[number]["id"] for number in (0, 2, 3, 4)]
            assert order(server.wait_for(4)) == wanted
            status = child.drain()
            assert (status["delivered"], status["dropped"], status["pending"]) == (4, 2, 0)
            assert len(child.said()) == 1 and "cannot be read" in child.said()[0]
        assert files(spool) == ["00000000000000000002.item.bak", "README"]
        assert order(server.events) == wanted and set(server.seen.values()) == {1}


def test_killed_again_and_again_while_it_sends(tmp_path):
    spool = tmp_path / "spool"
    events = opened(24)
    with sentry_server.running() as server:
        server.stop()
        with sender.sending(server.dsn, spool) as child:
            child.put(*events)
            kernel.wait_until(lambda: len(files(spool)) == 24, "items in the spool")
            child.kill()
        server.start()
        while len(server.accepted) < 24:
            before = len(server.accepted)
            with sender.sending(server.dsn, spool) as child:
                server.wait_for(min(before + 6, 24))
                child.kill()
        with sender.sending(server.dsn, spool) as child:
            assert child.drain()["pending"] == 0
        assert order(server.events) == [event["id"] for event in events]


def test_the_rate_limit_is_honoured_and_refusals_are_counted():
    with sentry_server.running() as server, sender.sending(server.dsn) as child:
        events = opened(4)
        server.answers.append(sentry_server.Answer(429, {"Retry-After": "4"}))
        child.put(events[0])
        server.wait_for(1)
        first, second = server.requests
        assert second - first >= 4
        # Too large with its attachment; too large in any case; not to be understood.
        too_large = sentry_server.Answer(413)
        server.answers.extend(
            [
                too_large,
                sentry_server.Answer(200),
                too_large,
                too_large,
                sentry_server.Answer(400, body='{"detail": "bad"}'),
            ]
        )
        child.put(events[1])
        assert server.wait_for(2) and not server.accepted[1].attachments
        child.put(*events[2:])
        kernel.wait_until(lambda: child.status()["refused"] == 2, "refusals")
        status = child.drain()
        assert (status["delivered"], status["pending"]) == (2, 0) and "400: bad" in status["last_error"]
        assert len(server.requests) == 7
        limited, again, large, bad = child.said()
        assert "429" in limited and "works again" in again and "413" in large and "400: bad" in bad


def test_a_certificate_that_nobody_trusts_is_one_line(tmp_path):
    certificate = sentry_server.self_signed(tmp_path)
    with sentry_server.running(certificate) as server:
        (event,) = opened(1)
        with sender.sending(server.dsn, tmp_path / "spool") as child:
            child.put(event)
            kernel.wait_until(lambda: child.status()["last_error"], "a failure")
            status = child.drain()
            assert status["pending"] == 1 and not server.requests
            first, last = child.said()
            assert "certificate is not trusted" in first and "SSL_CERT_FILE" in first
            assert "in the spool" in last and sentry_server.KEY not in first
        with sender.sending(server.dsn, tmp_path / "spool", env={"SSL_CERT_FILE": str(certificate)}) as child:
            assert order(server.wait_for(1)) == [event["id"]]
            assert child.drain()["delivered"] == 1 and child.said() == []


def test_over_the_bound_the_oldest_fall_out_and_it_is_said(tmp_path):
    spool = tmp_path / "spool"
    with sentry_server.running() as server:
        server.stop()
        events = opened(12)
        with sender.sending(server.dsn, spool, 1 << 20) as child:
            child.put(events[0])
            kernel.wait_until(lambda: files(spool) and child.status()["last_error"], "an item")
            size = (spool / "sentry" / files(spool)[0]).stat().st_size
            child.kill()
        room = -(-size // 4096) * 4096
        with sender.sending(server.dsn, spool, 5 * room) as child:
            child.put(*events[1:])
            status = child.status()
            assert status["pending"] <= 5 and status["dropped"] >= 7
            kept = status["pending"]
            kernel.wait_until(lambda: len(files(spool)) == kept, "the bound on disk")
            assert len([line for line in child.said() if "dropped" in line]) == 1
            server.start()
            # The first may be an older one: it was under way while the others came.
            assert order(server.wait_for(kept))[1:] == [event["id"] for event in events[1 - kept :]]
            kernel.wait_until(lambda: child.status()["pending"] == 0, "all delivered")
            assert re.search(rf"works again after .*; {12 - kept} alerts were dropped", child.said()[-1]), child.said()


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_nothing(fault, tmp_path):
    """A file system of a few kB, and one that is read-only, in a mount namespace of the sender."""
    mount = f'mount -t tmpfs -o {"size=8k" if fault == "full" else "ro"} none {tmp_path} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    with sentry_server.running() as server:
        server.stop()
        events = opened(3)
        with sender.sending(server.dsn, tmp_path / "spool", prefix=prefix) as child:
            child.put(*events)
            words = "No space left" if fault == "full" else "Read-only file system"
            kernel.wait_until(lambda: any(words in line for line in child.said()), f"a word about it: {child.said()}")
            server.start()
            assert order(server.wait_for(3)) == [event["id"] for event in events]
            status = child.drain()
            assert (status["delivered"], status["dropped"], status["pending"]) == (3, 0, 0)
            (line,) = [line for line in child.said() if "spool" in line and "works again" not in line]
            assert "memory" in line and ("make room" in line if fault == "full" else "can write" in line)


def test_one_spool_is_one_agents(tmp_path):
    with sentry_server.running() as server, sender.sending(server.dsn, tmp_path / "spool") as child:
        assert child.status()["pending"] == 0
        with sender.sending(server.dsn, tmp_path / "spool") as second:
            assert second.process.wait(60) == 3
            (line,) = second.said()
            assert "in use by another agent" in line and "a spool of its own" in line
