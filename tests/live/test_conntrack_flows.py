"""What the agent remembers of conntrack tables in between: where a connection's entry is, and that it is gone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from stucktrace.collectors import conntrack_memory
from stucktrace.collectors.conntrack import Sighting, flow_of
from stucktrace.collectors.conntrack_flows import Flows
from stucktrace.collectors.conntrack_memory import Lost
from stucktrace.facts import SocketFact

from tests.harness.kernel import wait_until
from tests.live.test_conntrack import INVALID, PORT, Client, Node, node, strict

__all__ = ["node"]


@contextlib.contextmanager
def following(*clients: Client) -> Iterator[Flows]:
    woken = threading.Event()
    flows = Flows(woken.set)
    flows.watch([client.target.pid for client in clients])
    try:
        assert all(seen(flows, client) for client in clients)
        yield flows
    finally:
        flows.close()


def seen(flows: Flows, client: Client) -> tuple[Sighting, ...]:
    fact = SocketFact((3,), client.inode, "inet", "tcp", "ESTABLISHED", client.local, client.row["remote"])
    flow = flow_of(fact)
    assert flow is not None
    return flows.of(client.inode, flow)


def next_loss(flows: Flows) -> Lost:
    return wait_until(lambda: next(iter(flows.news()), None), "the loss to be noticed")


def test_what_was_there_before_is_seen_and_missed(node: Node) -> None:
    """The middle holds no process and nobody tells of the eviction: it is asked in turn. Then it is asked for."""
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, other = node.connect(stack), node.connect(stack)
        with following(client, other) as flows:
            assert {sighting.where for sighting in seen(flows, client)} == {f"the network namespace {node.middle}"}
            assert not flows.lost and not flows.unsaid()
            node.evict(client.port)
            lost = next_loss(flows)
            assert (lost.inode, lost.pids, lost.local) == (client.inode, (client.target.pid,), client.local)
            assert lost.remote == f"{node.server_address}:{PORT}" and node.middle in lost.where
            assert flows.lost == {client.inode} and not flows.news()
            assert node.middle in {fact.where.rpartition(" ")[2] for fact in flows.facts}
            concerned = {fact.netns: pid for pid, fact in flows.readings()}
            middle = next(fact.netns for fact in flows.facts if node.middle in fact.where)
            assert concerned[middle] == min(client.target.pid, other.target.pid)


def test_an_event_tells_it_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a connection that is younger than the listener. Its end is no news."""
    node.rules("forward", "ct state established accept")
    with contextlib.ExitStack() as stack:
        with following(node.connect(stack)):
            # The listener is there: what is made from now on tells of its end.
            younger, ends = node.connect(stack), node.connect(stack)
        with following(younger, ends) as flows:
            monkeypatch.setattr(conntrack_memory, "QUESTIONS_AGAIN", 0)
            port = ends.port
            ends.target.process.kill()
            ends.target.process.wait(60)
            node.evict(port)
            node.evict(younger.port)
            assert next_loss(flows).inode == younger.inode
            # nf_conntrack_tcp_loose makes it anew with the next packet.
            younger.target.go()
            wait_until(lambda: not flows.lost, "the entry to be back")
            assert not flows.news()


def test_without_the_capability_there_is_one_line(node: Node) -> None:
    """And how full the table is, from /proc."""
    code = "from stucktrace.collectors.conntrack_flows import Flows as F; f = F(lambda: None); f.watch([1]); said = f.unsaid(); print(len(said), said[0].remedy, f.unsaid(), [fact.count for fact in f.facts])"
    prefix = ["ip", "netns", "exec", node.middle, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"]
    node.rules("forward", "ct state established accept")
    with contextlib.ExitStack() as stack:
        node.connect(stack)
        done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("1 grant CAP_NET_ADMIN;"), done.stderr
    assert any(json.loads(done.stdout[done.stdout.rindex("[") :])), done.stdout
