"""Connects that fail and names that nobody resolves."""

from __future__ import annotations

from tests.harness import command, kernel, namespaces, targets
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
