"""A Celery worker whose connection to its broker loses its conntrack entry on a router of the same node."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.harness import agent, brokers, celery, command, conntrack_table, kernel, namespaces

CHAIN = """
add table inet t
add chain inet t c { type filter hook forward priority 0; }
add rule inet t c ct state established,related accept
"""
DROPS_INVALID = "add rule inet t c ct state invalid drop"
ONLY_SYNS = "add rule inet t c tcp flags & (syn | ack) == syn accept\nadd rule inet t c drop"
WITHIN_S = 3.0
"""From the first retransmission to the alert."""


@dataclass(frozen=True)
class Router:
    """Between a client and its broker."""

    netns: str
    broker: brokers.Broker
    """As the client sees it."""

    def connections(self) -> set[str]:
        """Addresses of the client's ends that have an entry."""
        text = namespaces.run(self.netns, "conntrack", "-L", "-p", "tcp", "--dport", str(self.broker.port))
        return {":".join(ends) for ends in re.findall(r"ESTABLISHED src=(\S+) dst=\S+ sport=(\d+)", text)}

    def drops(self, rules: str, loose: int) -> None:
        """What has no entry."""
        namespaces.run(self.netns, "nft", "-f", "-", text=rules)
        namespaces.run(self.netns, "sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_loose={loose}")

    @contextlib.contextmanager
    def evicted(self) -> Iterator[None]:
        """No entry is left; in the end every packet may pass."""
        namespaces.run(self.netns, "conntrack", "-D", "-p", "tcp", "--dport", str(self.broker.port))
        assert not self.connections()
        try:
            yield
        finally:
            namespaces.run(self.netns, "nft", "delete", "table", "inet", "t")


@pytest.fixture
def router(rabbitmq: brokers.Broker) -> Iterator[Router]:
    with namespaces.pair(rabbitmq.pair.there) as to_broker, namespaces.pair(to_broker.here) as to_client:
        netns, client = to_broker.here, to_client.here
        namespaces.run(netns, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        namespaces.run(netns, "nft", "-f", "-", text=CHAIN)
        namespaces.run(client, "ip", "route", "add", "default", "via", to_client.there_address)
        back = ("ip", "route", "add", to_client.here_address, "via", to_broker.here_address)
        namespaces.run(to_broker.there, *back)
        pair = replace(to_client, there=to_broker.there, there_address=to_broker.there_address)
        url = rabbitmq.url.replace(rabbitmq.address, to_broker.there_address)
        yield Router(netns, replace(rabbitmq, address=to_broker.there_address, url=url, pair=pair))


def since_first_retransmission_s(event: agent.Event) -> float:
    """At the time of the alert, by the figures of the socket in its report: the timeout was doubled `backoff` times."""
    socket = command.Report(event["report"]).socket()
    first_s = socket["rto_s"] / 2 ** socket["backoff"]
    outage_s = socket["last_send_s"] + socket["rto_s"] - first_s
    return float(outage_s - first_s + event["time"] - event["report"]["time"])


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize(
    ("beside", "rules", "loose", "confidence"),
    [
        ("router", DROPS_INVALID, 0, "proven"),
        ("elsewhere", DROPS_INVALID, 0, "proven"),
        ("elsewhere", ONLY_SYNS, 1, "likely"),
    ],
)
def test_an_evicted_entry_is_named_at_once(
    router: Router, beside: str, rules: str, loose: int, confidence: str
) -> None:
    """It was there before the agent, and no other connection is left to tell that flows like it are tracked."""
    router.drops(rules, loose)
    with celery.worker(router.broker, children=4, prefix=agent.ALONE, env={"USER_TIMEOUT_MS": "0"}) as worker:
        before = router.connections()
        assert before
        with agent.watching(worker.main, netns=router.netns if beside == "router" else "") as watcher:
            worker.send("sleep_then_ack", 5)
            kernel.wait_until(
                lambda: any(kernel.in_call(pid, "clock_nanosleep") for pid in worker.children), "the task"
            )
            with router.evicted():
                opened = watcher.wait_for("opened")
                assert opened["code"] == "half-open", opened["summary"]
                socket = command.Report(opened["report"]).socket()
                assert opened["affected"][0]["pid"] == agent.own_pid(worker.main)
                assert socket["local"] in before and socket["conntrack"] == "absent"
                assert f"{socket['local']} -> {router.broker.address}:{router.broker.port}" in opened["summary"]
                where = "stucktrace runs in" if beside == "router" else router.netns
                assert where in opened["summary"] and opened["confidence"] == confidence
                assert since_first_retransmission_s(opened) < WITHIN_S
            resolved = watcher.wait_for("resolved")
            assert (resolved["id"], resolved["how"]) == (opened["id"], "recovered")


def test_a_table_without_room_is_said() -> None:
    """The table of the namespace that gunicorn lives in, filled up to the node's limit; no setting is changed."""
    with namespaces.pair() as pair, agent.gunicorn(netns=pair.here) as server:
        namespaces.run(pair.here, "nft", "-f", "-", text=CHAIN.replace("forward", "output"))
        with server.request("/") as client:
            assert client.wait(120) == 0
        with agent.watching(server.master) as watcher:
            conntrack_table.fill(pair.here, int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()))
            opened = watcher.wait_for("opened")
            assert opened["code"] == "conntrack-pressure", opened["summary"]
            namespaces.run(pair.here, "conntrack", "-F")
            resolved = watcher.wait_for("resolved")
            assert (resolved["id"], resolved["how"]) == (opened["id"], "recovered")
