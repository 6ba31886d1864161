"""/metrics and /healthz: what a scraper reads, what a broken loop looks like, and clients that would hold the agent."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from stucktrace.errors import StucktraceError
from stucktrace.facts import ConntrackFact
from stucktrace.node.figures import Durations, Figures
from stucktrace.sinks import prometheus
from stucktrace.sinks.prometheus import CONNECTIONS, HEALTHY_S, Server
from stucktrace.sinks.sink import SinkStatus


def figures(**changes: object) -> Figures:
    return Figures(
        **{
            "turned_s": time.monotonic(),
            "version": "1.2",
            "engine": "core",
            "node": 'a "node"\\\n',
            "watched": {"gunicorn-worker": 3},
            "open": {("half-open", "critical"): 2},
            "resolved": {("half-open", "killed"): 4, ("half-open", "recovered"): 1},
            "alert_delay": Durations().plus(0.1).plus(0.2).plus(11),
            "rss_bytes": 50_000_000,
            "sinks": {"sentry": SinkStatus(delivered=9, pending=2)},
            "conntrack": (ConntrackFact(4026531840, 10, 100, drop=3),),
        }
        | changes
    )


@contextlib.contextmanager
def serving(found: Figures | None, address: str = "127.0.0.1:0") -> Iterator[Server]:
    server = prometheus.serve(address, lambda: found)
    try:
        yield server
    finally:
        server.close()


def get(server: Server, path: str, accept: str = "text/plain") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{server.address}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def samples(families: Iterator[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "parser"), [("text/plain", parse), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)]
)
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_what_a_scraper_reads(accept, parser, address: str):
    with serving(figures(), address) as server:
        status, content_type, text = get(server, "/metrics", accept)
        assert status == 200 and content_type.startswith(accept.partition(";")[0])
        found = samples(parser(text))
    one = {name: value for (name, labels), value in found.items() if not labels}
    assert one["stucktrace_resident_memory_bytes"] == 50_000_000
    assert one["stucktrace_alert_delay_seconds_count"] == 3 and one["stucktrace_alert_delay_seconds_sum"] == 11.3
    assert found["stucktrace_alert_delay_seconds_bucket", frozenset({("le", "0.1")})] == 1
    assert found["stucktrace_alert_delay_seconds_bucket", frozenset({("le", "+Inf")})] == 3
    killed = frozenset({("code", "half-open"), ("how", "killed")})
    assert found["stucktrace_alerts_resolved_total", killed] == 4
    assert found["stucktrace_conntrack_drops_total", frozenset({("netns", "4026531840"), ("reason", "drop")})] == 3
    assert found["stucktrace_sink_pending", frozenset({("sink", "sentry")})] == 2
    (info,) = (dict(labels) for name, labels in found if name == "stucktrace_agent_info")
    assert info["node"] == 'a "node"\\\n'
    assert all(name.startswith("stucktrace_") for name, _ in found)


def test_health_is_a_loop_that_turns():
    with serving(figures()) as server:
        assert get(server, "/healthz")[::2] == (200, "ok\n")
        assert get(server, "/metrics?name=x")[0] == 200
        assert get(server, "/")[0] == 404
    with serving(figures(turned_s=time.monotonic() - HEALTHY_S - 30)) as server:
        status, _, text = get(server, "/healthz")
        assert status == 503 and "has not turned since 2" in text and text.count("\n") == 1
    with serving(None) as server:
        assert get(server, "/healthz")[0] == 503 and "starting" in get(server, "/healthz")[2]
        assert get(server, "/metrics")[0] == 200


def test_a_taken_address_is_one_line_with_a_remedy():
    with serving(figures()) as server:
        with pytest.raises(StucktraceError) as taken:
            prometheus.serve(server.address, lambda: None)
        assert taken.value.exit_status == 3
        assert "in use" in taken.value.message and "--metrics" in taken.value.remedy
        address = server.address
    with serving(figures(), address) as server:
        assert server.address == address
    with pytest.raises(StucktraceError, match="198.18.255.255:9464"):
        prometheus.serve("198.18.255.255:9464", lambda: None)


def test_neither_garbage_nor_slow_clients_hold_it():
    with serving(figures()) as server, contextlib.ExitStack() as clients:
        host, port = server.address.split(":")

        def connect(sent: bytes) -> socket.socket:
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client.sendall(sent)
            return client

        for nonsense in (
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"GET\r\n\r\n",
            b"x" * 100_000,
            b"POST / HTTP/1.1\r\n\r\n",
        ):
            with contextlib.suppress(ConnectionError), connect(nonsense) as client:
                # It may have hung up already.
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        # As many as there are threads: one more is turned away until their time is over, then all is well.
        slow = [connect(b"GET /metrics") for _ in range(CONNECTIONS)]
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                assert get(server, "/healthz")[0] == 200
                break
            assert time.monotonic() < end
            for client in slow:
                with contextlib.suppress(OSError):
                    client.sendall(b"a")
            time.sleep(0.2)
