"""`stucktrace conntrack` in network namespaces of the test's own, where a middle one plays the node."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness import command, conntrack_table, kernel, namespaces, targets
from tests.live.test_conntrack import CUT, INVALID, PORT, Client, Node, node, strict

__all__ = ["node"]
Json = dict[str, Any]
ALIVE = """
import os, socket, sys, time
kept = socket.create_connection((sys.argv[1], int(sys.argv[2])))
kept.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(sys.argv[3]))
os.write(int(os.environ["READY_FD"]), b"ready\\n")
time.sleep(3600)
"""
ASKS = """
import socket, sys
while True:
    asking = socket.socket()
    asking.setblocking(False)
    try:
        asking.connect((sys.argv[1], 9))
    except OSError:
        pass
    import time; time.sleep(0.05)
"""


def look(*pids: int, netns: str = "", status: int, options: tuple[str, ...] = ()) -> Json:
    """The answer of the command in that namespace, whose exit status has to be `status`."""
    prefix = ("ip", "netns", "exec", netns) if netns else ()
    done = command.run("conntrack", "--json", "--for", "0.3", *options, *pids, prefix=prefix)
    assert done.status == status, (done.status, done.stdout, done.stderr)
    answer: Json = json.loads(done.stdout)
    assert answer["schema"] == "stucktrace.conntrack/1"
    return answer


def said(answer: Json, status: str) -> set[str]:
    return {check["code"] for check in answer["checks"] if check["status"] == status}


def table(answer: Json, name: str) -> Json:
    return next(one for one in answer["namespaces"] if name in one["name"])


def entries(answer: Json, client: Client) -> dict[str, Json]:
    """What each namespace says of the client's connection."""
    (flow,) = [one for one in answer["connections"] if one["local"] == client.local]
    return {one["namespace"]: one for one in flow["entries"]}


@contextlib.contextmanager
def alive(node: Node, idle_s: int) -> Iterator[targets.Target]:
    """A connection through the middle with a keepalive after so long."""
    program = [sys.executable, "-c", ALIVE, node.server_address, str(PORT), str(idle_s)]
    with targets.start(program, netns=node.client) as target:
        yield target


def set_timeout(node: Node, seconds: int) -> None:
    node.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_established={seconds}")


def test_nothing_is_wrong(node: Node) -> None:
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        answer = look(client.target.pid, netns=node.middle, status=0)
        found = entries(answer, client)
        through = found["the network namespace that stucktrace runs in"]
        assert (through["state"], through["tcp_state"], through["assured"]) == ("tracked", "ESTABLISHED", True)
        assert through["original"] == [client.local, f"{node.server_address}:{PORT}"]
        assert 0 < through["timeout_s"] <= 432_000 and through["zone"] == 0 and not through["unreplied"]
        own = table(answer, f"pid {client.target.pid}")
        assert not own["hooked"] and own["pids"] == [client.target.pid]
        assert found[own["name"]]["state"] == "not-tracked"
        middle = table(answer, "stucktrace runs in")
        assert middle["hooked"] and middle["count"] >= 1 and middle["tcp"]["loose"] == 0
        assert middle["counters"]["drop"] == {"total": 0, "in_window": 0}
        text = command.run("conntrack", client.target.pid, prefix=("ip", "netns", "exec", node.middle)).stdout
        assert text.startswith("conntrack: ok") and "not tracked here" in text and "ASSURED" in text


def test_an_evicted_entry(node: Node) -> None:
    """Its next packet is lost for certain; with a table that takes packets in mid-stream it is a warning."""
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, other = node.connect(stack), node.connect(stack)
        node.evict(client.port)
        answer = look(client.target.pid, other.target.pid, netns=node.middle, status=1)
        (lost,) = [check for check in answer["checks"] if check["status"] == "error"]
        assert lost["code"] == "entry-lost" and client.local in lost["text"] and "INVALID" in lost["text"]
        assert "was evicted" in lost["text"] and other.local not in lost["text"]
        by_name = entries(answer, client)["the network namespace that stucktrace runs in"]
        assert (by_name["state"], by_name["drops_invalid"]) == ("absent", True)
        node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=1")
        answer = look(client.target.pid, netns=node.middle, status=5)
        assert said(answer, "warn") == {"entry-lost"} and "it goes on" in answer["checks"][0]["text"]


def test_the_only_connection_of_a_process_is_evicted_in_its_own_namespace(node: Node) -> None:
    """No other one tells that it was tracked: the rules there do."""
    node.rules("input", INVALID, netns=node.client)
    strict(node, netns=node.client)
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        assert look(client.target.pid, status=0)["checks"] == []
        node.evict(client.port, netns=node.client)
        answer = look(client.target.pid, status=1)
        assert said(answer, "error") == {"entry-lost"}
        # A rule that takes packets out of tracking may have exempted it.
        node.rules("output", "tcp dport 9 notrack", priority=-300, netns=node.client)
        answer = look(client.target.pid, status=0)
        assert {one["state"] for one in entries(answer, client).values()} == {"unknown", "not-tracked"}


def test_the_only_connection_that_goes_through_the_middle(node: Node) -> None:
    """Nothing like it is tracked there, but its packets go there for certain: a veth pair leads into its stack. Where a
    program may take them past it, nothing is claimed."""
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        node.evict(client.port)
        answer = look(client.target.pid, netns=node.middle, status=1)
        assert said(answer, "error") == {"entry-lost"} and not answer["namespaces"][0]["count"]
        device = node.run("sh", "-c", f"ip -o route get {node.client_address} | grep -o 'veth[0-9]*'").strip()
        node.run("tc", "qdisc", "add", "dev", device, "clsact")
        answer = look(client.target.pid, netns=node.middle, status=0)
        assert entries(answer, client)["the network namespace that stucktrace runs in"]["state"] == "unknown"


def test_a_cut_with_the_entry_in_place_is_not_conntracks(node: Node) -> None:
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        node.rules("forward", CUT, priority=10)
        client.send()
        look(client.target.pid, netns=node.middle, status=0)


def test_a_timeout_below_the_keepalive(node: Node) -> None:
    node.rules("forward", "ct state established,related accept")
    set_timeout(node, 600)
    with alive(node, 600) as target:
        answer = look(target.pid, netns=node.middle, status=5)
        assert said(answer, "warn") == {"timeout-below-keepalive"}
        (flow,) = answer["connections"]
        assert flow["keepalive"]["on"] and flow["keepalive"]["idle_s"] == 600


def test_a_full_table_and_what_it_drops() -> None:
    """Filled up to the node's limit in a namespace of the test's; no setting is changed."""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    with namespaces.pair() as pair:
        rules = "add table ip t\nadd chain ip t c { type filter hook output priority 0; }\nadd rule ip t c ct state new accept"
        namespaces.run(pair.here, "nft", "-f", "-", text=rules)
        conntrack_table.fill(pair.here, limit)
        with targets.start([sys.executable, "-c", ASKS, pair.there_address], netns=pair.here, ready=False):
            drops = "sh", "-c", "conntrack -S | grep -o ' drop=[0-9]*' | grep -v =0"
            kernel.wait_until(lambda: _says(pair.here, *drops), "a dropped connection")
            answer = look(netns=pair.here, status=1)
            assert said(answer, "error") == {"table-full"}
            drop = table(answer, "stucktrace runs in")["counters"]["drop"]
            assert drop["total"] >= drop["in_window"] >= 1
            assert answer["checks"][0]["text"].count("dropped") == 2


def _says(netns: str, *words: str) -> bool:
    with contextlib.suppress(AssertionError):
        return bool(namespaces.run(netns, *words))
    return False


def test_without_the_capability(node: Node) -> None:
    """One line on stderr with the remedy."""
    prefix = ("ip", "netns", "exec", node.middle, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all")
    done = command.run("conntrack", prefix=prefix)
    assert done.status == 3 and done.stdout == "" and done.stderr.count("\n") == 1 and "CAP_NET_ADMIN" in done.stderr
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        prefix = (*prefix[:4], "setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all")
        done = command.run("conntrack", client.target.pid, prefix=prefix)
        assert done.status == 3 and done.stdout.startswith("conntrack: incomplete") and "CAP_SYS_ADMIN" in done.stderr


def test_from_a_pod(node: Node) -> None:
    """In a PID namespace of its own the node's table is out of reach, and that is said."""
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        pod = ("ip", "netns", "exec", node.client, "unshare", "--pid", "--fork", "--mount-proc")
        done = command.run("conntrack", prefix=pod)
        assert done.status == 0 and "hostPID" in done.stdout, done.stdout
        done = command.run("conntrack", client.target.pid, prefix=pod)
        assert done.status == 3 and "no process" in done.stderr
