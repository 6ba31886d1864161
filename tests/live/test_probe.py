"""--probe: what a peer's TCP answers through real namespaces, packet filters and NAT, and that the target goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from stucktrace.collectors import tcp_probe
from stucktrace.collectors.kernel import Kernel

from tests.harness import command, kernel, namespaces, targets
from tests.harness.namespaces import Pair
from tests.live.test_conntrack import PORT as NODES_PORT
from tests.live.test_conntrack import node

__all__ = ["node"]

PORT = 5672
"""That of AMQP, so that `stucktrace amqp` takes it for a broker's before a frame has passed."""
IPV6 = "fd00:5717:c7::{}"
SERVER = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
os.write(int(os.environ["READY_FD"]), b"ready\\n")
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    kept = connection
"""
CLIENT = """
import http.client, os, sys, threading
sys.path.insert(0, sys.argv[3])
from ready import wait_for_go
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
connection.connect()
wait_for_go()
try:
    connection.request("GET", "/")
    print("answer:", connection.getresponse().read().decode(), flush=True)
except Exception as error:
    print("failed:", type(error).__name__, flush=True)
threading.Event().wait()
"""


@dataclass
class Ends:
    """A request that waits for its answer, whose server stands still."""

    client: targets.Target
    server: targets.Target
    remote: str
    here: str

    def row(self) -> dict[str, str]:
        return next(
            row for row in kernel.sockets(self.here) if row["remote"] == self.remote and row["state"] == "ESTAB"
        )

    def inode(self) -> int:
        found = re.search(r"\bino:(\d+)", self.row()["rest"])
        assert found
        return int(found[1])

    def goes_on(self) -> None:
        """The server's answer still arrives: nothing was harmed."""
        os.kill(self.server.pid, signal.SIGCONT)
        kernel.wait_until(lambda: "answer: ok" in self.client.log(), "the answer")

    def forget(self, pair: Pair) -> None:
        """The server's kernel drops the connection, and its reset is lost."""
        namespaces.run(
            pair.there,
            "nft",
            "-f",
            "-",
            text="add table inet lost\nadd chain inet lost out { type filter hook output priority 0; }\n"
            "add rule inet lost out tcp flags & (rst | fin) != 0 drop\n",
        )
        namespaces.run(pair.there, "ss", "-K", "sport", "=", f":{PORT}")
        namespaces.run(pair.there, "nft", "delete", "table", "inet", "lost")


@contextlib.contextmanager
def request(address: str, there: str, here: str) -> Iterator[Ends]:
    """A request from `here` to a server in `there`, which was stopped before it could read it."""
    with targets.start([sys.executable, "-c", SERVER, address, str(PORT)], netns=there) as server:
        program = [sys.executable, "-c", CLIENT, address, str(PORT), str(targets.TARGETS)]
        with targets.start(program, netns=here) as client:
            os.kill(server.pid, signal.SIGSTOP)
            kernel.wait_for_state(server.pid, "T")
            client.go()
            kernel.wait_for_call(client.pid, "recvfrom")
            host = f"[{address}]" if ":" in address else address
            yield Ends(client, server, f"{host}:{PORT}", here)


def probe_of(report: command.Report) -> dict[str, object]:
    return report.socket()["probe"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with namespaces.pair() as made:
        for netns, device, number in ((made.here, "veth0", 1), (made.there, made.there_device, 2)):
            namespaces.run(netns, "ip", "address", "add", f"{IPV6.format(number)}/64", "dev", device, "nodad")
        yield made


def test_a_stopped_server_is_alive(pair: Pair) -> None:
    with request(pair.there_address, pair.there, pair.here) as ends:
        kernel.wait_until(lambda: kernel.asleep_s(ends.client.pid) > 1.2, "a wait of 1.2 s")
        report = command.check(ends.client.pid, "peer-silent", "--stuck-after", 1, "--probe")
        said = probe_of(report)
        assert (said["answer"], said["tries"]) == ("alive", 1), said
        assert "its TCP answered a probe" in report.summary and report.evidence("probe") == "alive", report.text()
        watched = command.run("amqp", ends.client.pid, "--probe", "--for", "0.1s", "--json")
        event, summary = map(json.loads, watched.stdout.splitlines())
        assert (event["event"], summary["probe"]["answer"], summary["remote"]) == ("probed", "alive", ends.remote)
        assert watched.status == 4, "no frame passed"
        kernel.wait_until(lambda: kernel.asleep_s(ends.client.pid) > 5.2, "a wait of 5.2 s")
        refused = command.run("unstick", ends.client.pid, "--yes")
        assert refused.status == 3 and "its verdict is peer-silent" in refused.stderr, refused
        ends.goes_on()


@pytest.mark.parametrize("way", ["ipv6", "no time stamps", "loopback"])
def test_every_kind_of_connection(pair: Pair, core: Kernel, way: str) -> None:
    stamps = "0" if way == "no time stamps" else "1"
    namespaces.run(pair.here, "sysctl", "-qw", f"net.ipv4.tcp_timestamps={stamps}")
    address, here = {"ipv6": (IPV6.format(2), pair.here), "loopback": ("127.0.0.1", pair.there)}.get(
        way, (pair.there_address, pair.here)
    )
    with request(address, pair.there, here) as ends:
        assert ("ts sack" in ends.row()["rest"]) == (way != "no time stamps"), ends.row()
        fact = tcp_probe.probe(ends.client.pid, [ends.inode()], core)[ends.inode()]
        assert (fact.answer, fact.tries, fact.error) == ("alive", 1, ""), fact
        ends.goes_on()


def test_without_bpf_it_says_what_is_missing(pair: Pair) -> None:
    with request(pair.there_address, pair.there, pair.here) as ends:
        report = command.explain(ends.client.pid, "--probe", "--engine", "none")
        assert "told by BPF alone" in str(report["seen"]["missing"]), report.text()
        assert probe_of(report) is None


def test_a_cut_is_unreachable_in_under_4_s_and_may_heal(pair: Pair) -> None:
    """Before 30 s a cut is `likely`, whatever three probes say: this one heals."""
    with request(pair.there_address, pair.there, pair.here) as ends, contextlib.ExitStack() as healing:
        pair.cut(PORT)
        healing.callback(pair.heal)
        report = command.check(ends.client.pid, "half-open", "--probe", confidence="likely")
        said = probe_of(report)
        assert (said["answer"], said["tries"]) == ("unreachable", 3), said
        assert isinstance(said["seconds"], float) and 2 < said["seconds"] < 4, said
        assert "heal" in report.summary and report.evidence("probe") == "unreachable", report.text()
        healing.close()
        ends.goes_on()


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_path_that_only_small_segments_pass(pair: Pair, way: str) -> None:
    """The peer answers the probe; the request or its reply never arrives. That is a wait that does not end."""
    server = SERVER.replace("Length: 2", "Length: 2000").replace('ok")', '" + b"x" * 2000)')
    netns = pair.there if way == "out" else pair.here
    rule = "add table inet small\nadd chain inet small c { type filter hook input priority 0; }\nadd rule inet small c meta length > 500 drop\n"
    path = "/" + "x" * (2000 if way == "out" else 1)
    with contextlib.ExitStack() as stack:
        address = pair.there_address
        stack.enter_context(targets.start([sys.executable, "-c", server, address, str(PORT)], netns=pair.there))
        program = [sys.executable, "-c", CLIENT.replace('"/"', repr(path)), address, str(PORT), str(targets.TARGETS)]
        client = stack.enter_context(targets.start(program, netns=pair.here))
        kernel.wait_until(lambda: f"{address}:{PORT}" in str(kernel.sockets(pair.here)), "the connection")
        namespaces.run(netns, "nft", "-f", "-", text=rule)
        stack.callback(namespaces.run, netns, "nft", "delete", "table", "inet", "small")
        client.go()
        kernel.wait_for_call(client.pid, "recvfrom")
        if way == "out":
            kernel.wait_until(lambda: kernel.asleep_s(client.pid) > 5.5, "an outage of 5.5 s")
        report = command.check(client.pid, "half-open", "--probe", confidence="likely")
        said = probe_of(report)
        assert said["answer"] == "alive" and "only small segments pass" in report.summary, report.text()
        assert bool(said["unreceived_bytes"]) == (way == "in"), said


def test_a_server_that_forgot_the_connection_resets_it(pair: Pair) -> None:
    with request(pair.there_address, pair.there, pair.here) as ends:
        ends.forget(pair)
        assert ends.row(), "the client does not know yet"
        assert command.explain(ends.client.pid).code != "half-open"
        report = command.check(ends.client.pid, "half-open", "--probe", confidence="proven")
        assert (probe_of(report)["answer"], probe_of(report)["tries"]) == ("reset", 1)
        assert "ECONNRESET" in report.summary, report.text()
        kernel.wait_until(lambda: "failed: ConnectionResetError" in ends.client.log(), "the reset at the client")


@pytest.mark.parametrize("where", ["on the way", "in its own namespace"])
def test_behind_address_translation(node, where: str, core: Kernel) -> None:
    """The tuple is the client's own, in both directions: conntrack translates what is sent and what comes back."""
    rules = f"add table ip t\nadd chain ip t c {{ type nat hook {{}} priority -100; }}\nadd rule ip t c ip daddr 203.0.113.7 tcp dport 80 dnat to {node.server_address}:{NODES_PORT}\n"
    netns, hook = (node.middle, "prerouting") if where == "on the way" else (node.client, "output")
    node.run("nft", "-f", "-", netns=netns, text=rules.replace("{}", hook))
    program = [sys.executable, "-c", CLIENT, "203.0.113.7", "80", str(targets.TARGETS)]
    with targets.start(program, netns=node.client) as client:
        row = next(row for row in kernel.sockets(node.client) if row["remote"] == "203.0.113.7:80")
        inode = int(re.search(r"\bino:(\d+)", row["rest"])[1])  # type: ignore[index]
        fact = tcp_probe.probe(client.pid, [inode], core)[inode]
        assert (fact.answer, fact.tries) == ("alive", 1), fact


def test_a_busy_connection_is_alive_and_not_harmed(pair: Pair, core: Kernel) -> None:
    """Its own segments are no answer to a probe and not mistaken for one; every byte arrives in order."""
    echo = "import os, socket, sys\nlistener = socket.create_server((sys.argv[1], 9090))\nos.write(int(os.environ['READY_FD']), b'ready\\n')\nconnection, _ = listener.accept()\nwhile data := connection.recv(65536):\n    connection.sendall(data)\n"
    busy = (
        "import os, socket, sys\nconnection = socket.create_connection((sys.argv[1], 9090))\n"
        "os.write(int(os.environ['READY_FD']), b'%d\\n' % os.fstat(connection.fileno()).st_ino)\n"
        "for number in range(1 << 30):\n    data = b'%d' % number * 100\n    connection.sendall(data)\n    got = b''\n"
        "    while len(got) < len(data):\n        part = connection.recv(65536)\n        assert part\n        got += part\n"
        "    assert got == data\n    if number % 1000 == 0:\n        print(number, flush=True)\n"
    )
    with (
        targets.start([sys.executable, "-c", echo, pair.there_address], netns=pair.there),
        targets.start([sys.executable, "-c", busy, pair.there_address], netns=pair.here) as client,
    ):
        inode = int(client.said)
        for _ in range(2):
            assert tcp_probe.probe(client.pid, [inode], core)[inode].answer == "alive"
        before = client.log()
        kernel.wait_until(lambda: client.log() != before, "more rounds")
        assert kernel.alive(client.pid)
