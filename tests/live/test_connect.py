"""Connects that fail and names that nobody resolves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import command, conntrack_table, kernel, namespaces, targets
from tests.live.conftest import ENGINES


def test_a_port_whose_packets_are_dropped():
    """Unanswered SYNs for more than 5 s; the kernel would go on for two minutes."""
    with namespaces.pair() as pair:
        pair.cut(8080)
        with targets.start("connects.py", pair.there_address, 8080, "once", netns=pair.here) as target:
            kernel.wait_for_call(target.pid, "connect")
            kernel.wait_until(lambda: kernel.asleep_s(target.pid) > 6, "6 s of unanswered SYNs")
            for engine in ENGINES:
                report = command.check(target.pid, "connect-failing", "--engine", engine)
                assert f"{pair.there_address}:8080" in report.summary, report.summary
                assert report.socket()["state"] == "SYN_SENT"
                assert report.evidence("retransmits") is None or report.evidence("retransmits") >= 2, report.text()


DENIED = """
import os, socket, sys, time
os.write(int(os.environ["READY_FD"]), b"ready\\n")
for port in range(1, 60000):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (sys.argv[1], port))
    except OSError:
        pass
    time.sleep(0.05)
"""


@pytest.mark.parametrize("where", ["own", "middle"])
def test_a_conntrack_table_without_room(where):
    """Filled up to the node's limit in a namespace of the test's; no setting is changed."""
    with namespaces.pair() as pair, namespaces.pair(pair.there) as beyond:
        full = pair.here if where == "own" else pair.there
        namespaces.run(pair.there, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        namespaces.run(pair.here, "ip", "route", "add", "default", "via", pair.there_address)
        namespaces.run(beyond.here, "ip", "route", "add", "default", "via", beyond.there_address)
        hook = "output" if where == "own" else "forward"
        rules = f"add table ip t\nadd chain ip t c {{ type filter hook {hook} priority 0; }}\nadd rule ip t c ct state new accept"
        namespaces.run(full, "nft", "-f", "-", text=rules)
        limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        conntrack_table.fill(full, limit)
        python = [sys.executable, "-c", DENIED, beyond.here_address]
        with (
            targets.start(python, netns=pair.here),
            targets.start("connects.py", beyond.here_address, 8080, "once", netns=pair.here) as target,
        ):
            kernel.wait_for_call(target.pid, "connect")
            kernel.wait_until(lambda: kernel.asleep_s(target.pid) > 6, "6 s of unanswered SYNs")
            confidence = "proven" if where == "own" else "likely"
            for engine in ENGINES:
                prefix = ("ip", "netns", "exec", full)
                report = command.check(
                    target.pid, "connect-failing", "--engine", engine, prefix=prefix, confidence=confidence
                )
                assert "is full and drops new connections" in report.summary, report.summary
                assert report.evidence("count") >= 0.99 * limit and report.socket()["conntrack"] == "absent"


def test_refused_again_and_again():
    """Seen from the kernel's events, whatever the code that tries is called."""
    with targets.start("connects.py", "127.0.0.1", 9, "forever") as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        report = command.check(target.pid, "connect-failing", "--engine", "auto")
        assert "127.0.0.1:9" in report.summary and "ECONNREFUSED" in report.text(), report.text()
        # Without events a sleep under a function of one's own proves nothing, and nothing is claimed.
        assert command.explain(target.pid, "--engine", "none").verdict["class"] in ("healthy", "stuck")


def test_a_resolver_that_does_not_answer(tmp_path):
    with namespaces.pair() as pair:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {pair.there_address}\noptions timeout:20 attempts:5\n")
        with (
            targets.start("silent_udp.py", pair.there_address, 53, netns=pair.there),
            targets.start("resolves.py", file, netns=pair.here) as target,
        ):
            kernel.wait_for_call(target.pid, "poll")
            kernel.wait_until(lambda: kernel.asleep_s(target.pid) > 6, "6 s without an answer")
            for engine in ENGINES:
                report = command.check(target.pid, "dns-unanswered", "--engine", engine)
                assert f"{pair.there_address}:53" in report.text(), report.text()
