"""A flow whose conntrack entry a node on the way has lost, and what looks like it: the middle namespace plays the node."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import command, kernel, namespaces, targets
from tests.harness.kernel import wait_until

PORT = 8080
counter = itertools.count()
INVALID = "ct state established,related accept\nct state invalid drop"
MAP = "ct state vmap {{ established : accept, related : accept, invalid : {} }}"
CUT = f"tcp dport {PORT} drop"


@dataclass
class Node:
    """A client's and a server's namespace with this one between them."""

    middle: str
    client: str
    server: str
    server_address: str
    client_address: str

    def run(self, *words: str, netns: str = "", text: str = "") -> str:
        return namespaces.run(netns or self.middle, *words, text=text)

    def rules(self, hook: str, rules: str, *, priority: int = 0, netns: str = "") -> None:
        """A base chain of its own with these rules."""
        name = f"t{hook}{abs(priority)}"
        chain = f"add table inet {name}\nadd chain inet {name} c {{ type filter hook {hook} priority {priority}; }}\n"
        lines = "".join(f"add rule inet {name} c {rule}\n" for rule in rules.splitlines())
        self.run("nft", "-f", "-", text=chain + lines, netns=netns)

    def entries(self, port: int, netns: str = "") -> str:
        """The entries of the client's flow from that port, in any zone."""
        listing = self.run("conntrack", "-L", "-p", "tcp", "--orig-port-src", str(port), netns=netns)
        return "\n".join(line for line in listing.splitlines() if f"sport={port} " in line)

    def evict(self, port: int, netns: str = "") -> None:
        self.run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(port), netns=netns)
        assert not self.entries(port, netns)

    def connect(self, stack: contextlib.ExitStack) -> Client:
        url = f"http://{self.server_address}:{PORT}/"
        target = stack.enter_context(targets.start("http_client.py", "urllib", url, "later", netns=self.client))
        return Client(target, self)

    def explain(self, client: Client, *args: str) -> command.Report:
        return command.check(
            client.target.pid, "half-open", *args, prefix=("ip", "netns", "exec", self.middle), confidence=None
        )


@dataclass
class Client:
    """A connection made, and a request that goes out on it later."""

    target: targets.Target
    node: Node

    @property
    def row(self) -> dict[str, str]:
        inodes = set()
        for link in Path(f"/proc/{self.target.pid}/fd").iterdir():
            inodes.update(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
        return next(
            row
            for row in kernel.sockets(self.node.client)
            if (ino := re.search(r"\bino:(\d+)", row["rest"])) and ino.group(1) in inodes
        )

    @property
    def inode(self) -> int:
        found = re.search(r"\bino:(\d+)", self.row["rest"])
        assert found
        return int(found.group(1))

    @property
    def local(self) -> str:
        return self.row["local"]

    @property
    def port(self) -> int:
        return int(self.local.rpartition(":")[2])

    def send(self, *, outage_s: float = 0.0) -> None:
        """The request, which is retransmitted a second time at least, and has no ACK for so long."""
        before_ms = int((re.search(r"lastack:(\d+)", self.row["rest"]) or [0, "0"])[1])
        self.target.go()

        def lost() -> bool:
            rest = self.row["rest"]
            backoff = re.search(r"backoff:(\d+)", rest)
            sent = re.search(r"lastsnd:(\d+)", rest)
            ack = re.search(r"lastack:(\d+)", rest)
            if not (backoff and sent and ack and int(backoff.group(1)) >= 2):
                return False
            return int(ack.group(1)) - before_ms >= outage_s * 1000 and int(ack.group(1)) >= outage_s * 1000

        wait_until(lost, "the request to be retransmitted twice")


SERVER = f"""
import os, socket, sys
listener = socket.create_server((sys.argv[1], {PORT}))
os.write(int(os.environ["READY_FD"]), b"ready\\n")
kept = []
while True:
    kept.append(listener.accept())
"""


@pytest.fixture
def node() -> Iterator[Node]:
    with namespaces.pair() as to_client, namespaces.pair(to_client.there) as to_server:
        made = Node(to_client.there, to_client.here, to_server.here, to_server.here_address, to_client.here_address)
        for pair in (to_client, to_server):
            made.run("ip", "route", "add", "default", "via", pair.there_address, netns=pair.here)
        made.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        with targets.start([targets.sys.executable, "-c", SERVER, made.server_address], netns=made.server):
            yield made


@pytest.mark.parametrize(
    ("rules", "drops"),
    [
        ("ct state invalid drop", True),
        (INVALID, True),
        (MAP.format("drop"), True),
        (MAP.format("accept") + "\nct state invalid drop", False),
        ("ct state vmap { established : accept, new : drop }\nct state invalid counter drop", True),
        ("ct state { invalid, new } drop", False),
        ("ip saddr 10.0.0.0/8 accept\nct state invalid drop", False),
        ("iifname lo ct state invalid drop", False),
        ("ct state established,related accept", False),
        ("ct state new drop", False),
    ],
)
def test_which_rules_certainly_drop_what_has_no_entry(rules: str, drops: bool) -> None:
    """As nft itself writes them into the kernel."""
    name = f"st{os.getpid():x}x{next(counter) + 1000}a"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        text = "add table inet t\nadd chain inet t c { type filter hook forward priority 0; }\n"
        text += "".join(f"add rule inet t c {rule}\n" for rule in rules.splitlines())
        subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=text, text=True, check=True)
        code = "from stucktrace.collectors import nft_rules as n; print(n.drops_invalid(True, own=False), n.drops_invalid(True, own=True))"
        done = subprocess.run(
            ["ip", "netns", "exec", name, targets.sys.executable, "-c", code], capture_output=True, text=True
        )
        assert done.stdout.split() == [str(drops), "False"], done.stderr
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def strict(node: Node, netns: str = "") -> None:
    """Only a SYN makes an entry."""
    node.run("sh", "-c", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose", netns=netns)


def test_an_evicted_entry_is_named_and_proven_at_once(node: Node, engine: str) -> None:
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, other = node.connect(stack), node.connect(stack)
        assert node.entries(client.port)
        node.evict(client.port)
        client.send()
        report = node.explain(client, "--engine", engine)
        assert report.confidence == "proven", report.text()
        assert report.evidence("entry") == "absent"
        assert [issue for issue in report.verdict["known_issues"] if "conntrack" in issue["title"]]
        assert f"{client.local} -> {node.server_address}:{PORT}" in report.text()
        assert report.socket()["conntrack"] == "absent"
        assert other.row["state"] == "ESTAB"


def test_an_entry_evicted_in_the_targets_own_namespace(node: Node, engine: str) -> None:
    """It is entered for the question: the command runs elsewhere."""
    node.rules("input", INVALID, netns=node.client)
    strict(node, netns=node.client)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.evict(client.port, netns=node.client)
        client.send()
        report = command.check(client.target.pid, "half-open", "--engine", engine, confidence="proven")
        assert report.socket()["conntrack"] == "absent"
        assert "the target's network namespace" in report.text()


def test_masqueraded_on_its_way_out(node: Node) -> None:
    """The node sees the flow under another address and port than the socket has."""
    strict(node)
    node.rules("forward", INVALID)
    chain = "add table ip t\nadd chain ip t c { type nat hook postrouting priority 100; }\n"
    alias = node.client_address.rpartition(".")[0] + ".240"
    node.run("ip", "address", "add", f"{alias}/32", "dev", "lo", netns=node.client)
    node.run(
        "nft",
        "-f",
        "-",
        text=chain + f"add rule ip t c meta l4proto tcp snat to {alias}:50000-50999\n",
        netns=node.client,
    )
    node.run("ip", "route", "add", f"{alias}/32", "via", node.client_address)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        entry = node.run("conntrack", "-L", "-p", "tcp", "--reply-src", node.server_address, netns=node.client)
        line = next(line for line in entry.splitlines() if f"sport={client.port} " in line)
        port = int(re.findall(r"dport=(\d+)", line)[1])
        assert 50000 <= port < 51000
        node.evict(port)
        client.send()
        report = node.explain(client)
        assert (report.confidence, report.socket()["conntrack"]) == ("proven", "absent"), report.text()
        assert f"(as {alias}:{port} -> {node.server_address}:{PORT})" in report.text()


def test_without_the_capability_the_table_is_read_from_proc(node: Node) -> None:
    """The rules cannot be: so a lost entry proves nothing by itself."""
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.evict(client.port)
        client.send(outage_s=6)
        prefix = ("ip", "netns", "exec", node.middle, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all")
        report = command.check(client.target.pid, "half-open", prefix=prefix, confidence="likely")
        assert report.socket()["conntrack"] == "absent", report.text()
        assert "a firewall rule lets no packet through that belongs to no known connection" in report.text()


ANSWERS = """
import os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
listener = socket.create_server((sys.argv[1], 9))
os.write(int(os.environ["READY_FD"]), b"ready\\n")
kept = [listener.accept()[0] for _ in range(2)]
signal.sigwait([signal.SIGUSR1])
kept[0].sendall(b"an answer")
kept[0].recv(1)
"""
CONNECTS = """
import os, socket, sys, time
kept = [socket.create_connection((sys.argv[1], 9)) for _ in range(2)]
os.write(int(os.environ["READY_FD"]), f"{kept[0].getsockname()[1]}\\n".encode())
time.sleep(3600)
"""


def test_a_connection_that_came_in(node: Node, engine: str) -> None:
    """The entry's original direction is the client's; the target is the server."""
    strict(node)
    node.rules("forward", INVALID)
    python, address = targets.sys.executable, node.server_address
    with (
        targets.start([python, "-c", ANSWERS, address], netns=node.server) as server,
        targets.start([python, "-c", CONNECTS, address], netns=node.client) as client,
    ):
        kernel.wait_for_call(server.pid, "rt_sigtimedwait")
        node.evict(int(client.said))
        server.go()
        kernel.wait_for_call(server.pid, "recvfrom")
        remote = f"{node.client_address}:{client.said}"
        wait_until(
            lambda: any(
                row["remote"] == remote and re.search(r"backoff:([2-9]|\d\d)", row["rest"])
                for row in kernel.sockets(node.server)
            ),
            "the answer to be retransmitted twice",
        )
        report = command.explain(server.pid, "--engine", engine, prefix=("ip", "netns", "exec", node.middle))
        states = {socket["remote"]: socket["conntrack"] for socket in report["sockets"] if socket["remote"]}
        assert states[remote] == "absent", report.text()
        assert report.code == "half-open", report.text()


def test_nothing_is_loaded_where_nothing_is_retransmitted(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        client = node.connect(stack)
        done = subprocess.run(
            [targets.sys.executable, "-X", "importtime", "-m", "stucktrace", "pid", str(client.target.pid)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "stucktrace.collectors.sockets" in done.stderr
        assert "collectors.conntrack" not in done.stderr and "ctnetlink" not in done.stderr


def test_seen_from_elsewhere_the_middle_is_not_known(node: Node) -> None:
    """In the client's own namespace and in the test's nothing is tracked: a node in between cannot be asked."""
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.evict(client.port)
        client.send(outage_s=6)
        report = command.check(client.target.pid, "half-open", confidence="likely")
        assert report.socket()["conntrack"] is None


def test_a_cut_with_the_entry_in_place(node: Node, engine: str) -> None:
    strict(node)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.rules("forward", CUT, priority=10)
        client.send(outage_s=6)
        report = node.explain(client, "--engine", engine)
        assert report.socket()["conntrack"] == "present"
        assert report.evidence("entry") == "present"
        assert "conntrack" not in report.summary
        assert not [issue for issue in report.verdict["known_issues"] if "conntrack" in issue["title"]]


def test_a_node_that_tracks_nothing(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.rules("forward", CUT)
        client.send(outage_s=6)
        assert node.explain(client).socket()["conntrack"] is None


def test_a_flow_that_is_never_tracked(node: Node) -> None:
    """The table has entries, and some of the client's own: but of another service."""
    strict(node)
    node.rules("prerouting", f"tcp dport {PORT} notrack\ntcp sport {PORT} notrack", priority=-300)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        other = f"import socket, time\ns = socket.create_server(({node.server_address!r}, 9)); import os\nos.write(int(os.environ['READY_FD']), b'r\\n')\ns.accept()\ntime.sleep(900)"
        stack.enter_context(targets.start([targets.sys.executable, "-c", other], netns=node.server))
        tracked = f"import os, socket, time\ns = socket.create_connection(({node.server_address!r}, 9))\nos.write(int(os.environ['READY_FD']), b'r\\n')\ntime.sleep(900)"
        stack.enter_context(targets.start([targets.sys.executable, "-c", tracked], netns=node.client))
        assert "dport=9 " in node.run("conntrack", "-L")
        node.rules("forward", CUT, priority=10)
        client.send(outage_s=6)
        assert node.explain(client).socket()["conntrack"] is None


def test_an_entry_in_another_zone_is_there(node: Node) -> None:
    strict(node)
    node.rules("prerouting", "ct zone set 7", priority=-300)
    node.rules("forward", INVALID)
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        assert "zone=7" in node.entries(client.port)
        node.rules("forward", CUT, priority=10)
        client.send(outage_s=6)
        assert node.explain(client).socket()["conntrack"] == "present"


def test_without_a_rule_that_was_read_it_is_an_assumption(node: Node) -> None:
    """An entry is gone, and something else cuts the flow: the answer says what it takes for granted."""
    strict(node)
    node.rules("forward", "ct state established,related accept")
    with contextlib.ExitStack() as stack:
        client, _ = node.connect(stack), node.connect(stack)
        node.evict(client.port)
        node.rules("forward", CUT, priority=10)
        client.send(outage_s=6)
        report = node.explain(client)
        assert report.confidence == "likely", report.text()
        assert report.socket()["conntrack"] == "absent"
        assert "assumes that" in report.text()
