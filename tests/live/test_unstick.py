"""stucktrace unstick: ends a proven dead connection so that the client goes on by itself, and refuses everything else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from stucktrace import unstick, unstick_watch
from stucktrace.collectors import sock_destroy
from stucktrace.collectors.process import read_process
from stucktrace.diagnosis.model import Finding
from stucktrace.errors import CannotInspect, Refused
from stucktrace.facts import SocketFact
from stucktrace.run import Options

from tests.harness import command, kernel, namespaces, targets
from tests.harness.brokers import Broker

INVALID = "ct state established,related accept\nct state invalid drop"


@dataclass
class Route:
    """A client, a node in the middle whose conntrack can lose a flow, and a server's namespace."""

    client: str
    middle: str
    server: str
    address: str
    server_pid: int = 0

    def evict(self, local: str) -> None:
        port = local.rpartition(":")[2]
        namespaces.run(self.middle, "conntrack", "-D", "-p", "tcp", "--orig-port-src", port)

    def unstick(self, pid: int, *args: str | int) -> command.Result:
        return command.run("unstick", pid, *args, prefix=("ip", "netns", "exec", self.middle))

    def wait_until_lost(self, local: str) -> None:
        """What was sent from there has been retransmitted twice: with its entry gone, that is proof."""
        kernel.wait_until(
            lambda: any(
                row["local"] == local and re.search(r"backoff:([2-9]|\d\d)", row["rest"])
                for row in kernel.sockets(self.client)
            ),
            "two retransmissions",
        )


@contextlib.contextmanager
def path_to(server: str = "") -> Iterator[Route]:
    with namespaces.pair(server) as far, namespaces.pair(far.here) as near:
        made = Route(near.here, far.here, far.there, far.there_address)
        namespaces.run(made.client, "ip", "route", "add", "default", "via", near.there_address)
        namespaces.run(made.server, "ip", "route", "add", f"{near.here_address}/32", "via", far.here_address)
        namespaces.run(made.middle, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = "".join(f"add rule inet t c {rule}\n" for rule in INVALID.splitlines())
        chain = "add table inet t\nadd chain inet t c { type filter hook forward priority 0; }\n"
        namespaces.run(made.middle, "nft", "-f", "-", text=chain + rules)
        namespaces.run(made.middle, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
        try:
            yield made
        finally:
            with contextlib.suppress(AssertionError):
                namespaces.run(made.server, "ip", "route", "del", f"{near.here_address}/32")


def messages(broker: Broker, queue: str) -> int:
    """How many tasks lie in that queue, by the broker's own word."""
    code = (
        "import sys, amqp\nwith amqp.Connection(sys.argv[1], userid='test', password='test') as connection:\n"
        "    print(connection.channel().queue_declare(sys.argv[2], passive=True).message_count)\n"
    )
    done = subprocess.run(
        ["ip", "netns", "exec", broker.pair.here, sys.executable, "-c", code, f"{broker.address}:{broker.port}", queue],
        check=True, timeout=120, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.xdist_group("rabbitmq")
def test_celerys_retry_takes_over_and_the_task_is_there_once(rabbitmq: Broker) -> None:
    queue = f"unstick-{os.getpid()}"
    with path_to(rabbitmq.pair.there) as path:
        remote = f"{path.address}:{rabbitmq.port}"
        url = rabbitmq.url.replace(rabbitmq.address, path.address)
        with (
            targets.start("celery_retry.py", url, queue, netns=path.client) as publisher,
            targets.start("celery_retry.py", url, queue + "-other", netns=path.client),
        ):
            found = [row for row in kernel.sockets(path.client) if row["remote"] == remote]
            (own,) = (row for row in found if holds(publisher.pid, row))
            assert messages(rabbitmq, queue) == 1
            path.evict(own["local"])
            publisher.go()
            path.wait_until_lost(own["local"])
            refused = path.unstick(publisher.pid)
            assert (refused.status, refused.stdout.count("\n")) == (3, 4), refused
            assert "--yes" in refused.stderr and "may have arrived" in refused.stdout
            would = path.unstick(publisher.pid, "--dry-run", "--engine", "none")
            assert would.status == 0 and own["local"] in would.stdout and "SOCK_DESTROY" in would.stdout, would
            assert messages(rabbitmq, queue) == 1
            done = path.unstick(publisher.pid, "--yes", "--json")
            assert done.status == 0, done
            said = json.loads(done.stdout)
            assert (said["schema"], said["action"]) == ("stucktrace.unstick/1", "destroyed")
            assert (said["pid"], said["connection"]["local"]) == (publisher.pid, own["local"])
            assert (said["outcome"]["what"], said["outcome"]["remote"]) == ("reconnected", remote), said
            kernel.wait_until(lambda: "published" in publisher.log(), "the publish that was tried again")
            assert messages(rabbitmq, queue) == 2
            assert publisher.process.poll() is None


def holds(pid: int, row: dict[str, str]) -> bool:
    inode = re.search(r"\bino:(\d+)", row["rest"])
    links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return inode is not None and f"socket:[{inode[1]}]" in links


SERVER = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], 8080))
os.write(int(os.environ["READY_FD"]), b"ready\\n")
kept = []
while True:
    kept.append(listener.accept())
"""
CLIENT = """
import os, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
connection = socket.socket()
if "bound" in sys.argv:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"veth0")
connection.connect((sys.argv[1], 8080))
heir = os.fork() if "forks" in sys.argv else 1
if heir == 0:
    time.sleep(3600)
os.write(int(os.environ["READY_FD"]), b"%s:%d\\n" % (connection.getsockname()[0].encode(), connection.getsockname()[1]))
signal.sigwait([signal.SIGUSR1])
connection.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
try:
    connection.recv(100)
except OSError as error:
    print("failed:", error.errno, flush=True)
    if "again" in sys.argv:
        connection = socket.create_connection((sys.argv[1], 8080))
if "ends" not in sys.argv:
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def path() -> Iterator[Route]:
    with path_to() as made, targets.start([sys.executable, "-c", SERVER, made.address], netns=made.server) as server:
        yield replace(made, server_pid=server.pid)


@contextlib.contextmanager
def clients(path: Route, *kinds: str) -> Iterator[list[targets.Target]]:
    """One that hangs on a connection whose entry is gone, for each of `kinds`; conntrack still tracks another one."""
    with contextlib.ExitStack() as stack:
        program = [sys.executable, "-c", CLIENT, path.address]
        found = [stack.enter_context(targets.start([*program, kind], netns=path.client)) for kind in (*kinds, "calm")]
        for client in found[:-1]:
            path.evict(client.said)
            client.go()
        for client in found[:-1]:
            path.wait_until_lost(client.said)
        yield found[:-1]


def result(done: command.Result) -> dict[str, Any]:
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_any_connection_of_one_process_alone(path: Route) -> None:
    with clients(path, "again", "ends", "forks") as (again, ends, forks):
        done = path.unstick(again.pid, "--yes", "--engine", "none")
        assert done.status == 0 and f"connected again to {path.address}:8080" in done.stdout, done
        assert "failed: 103" in again.log()
        done = path.unstick(ends.pid, "--yes", "--json")
        assert (done.status, result(done)["outcome"]["what"]) == (1, "ended"), done
        (child,) = kernel.children(forks.pid)
        done = path.unstick(forks.pid, "--yes", "--json")
        assert done.status == 3 and f"pid {child}" in done.stderr and "shared" in done.stderr, done
        assert result(done)["action"] == "refused"
        assert "failed" not in forks.log()


def test_what_is_not_proven_is_refused(path: Route) -> None:
    """A peer that stands still but lives, and a cut that may heal."""
    program = [sys.executable, "-c", CLIENT, path.address]
    with targets.start(program, netns=path.client) as silent, targets.start(program, netns=path.client) as cut:
        os.kill(path.server_pid, signal.SIGSTOP)
        try:
            silent.go()
            kernel.wait_for_call(silent.pid, "recvfrom")
            port = cut.said.rpartition(":")[2]
            chain = "add table ip cut\nadd chain ip cut c { type filter hook forward priority -10; }\n"
            namespaces.run(path.middle, "nft", "-f", "-", text=chain + f"add rule ip cut c tcp sport {port} drop\n")
            cut.go()
            kernel.wait_for_call(cut.pid, "recvfrom")
            done = path.unstick(cut.pid, "--yes", "--probe")
            assert done.status == 3 and "only likely" in done.stderr and "nothing was done" in done.stderr, done
            done = path.unstick(silent.pid, "--yes", "--probe")
            assert done.status == 3 and "nothing proves that" in done.stderr, done
            for client in (silent, cut):
                assert "failed" not in client.log()
        finally:
            os.kill(path.server_pid, signal.SIGCONT)


def test_a_socket_that_is_bound_to_a_device_is_found(path: Route) -> None:
    with targets.start([sys.executable, "-c", CLIENT, path.address, "bound"], netns=path.client) as client:
        client.go()
        kernel.wait_for_call(client.pid, "recvfrom")
        fd = kernel.call(client.pid)[1][0]  # type: ignore[index]
        inode = kernel.socket_inode(client.pid, fd)
        fact = SocketFact((fd,), inode, "inet", "tcp", "ESTABLISHED", client.said, f"{path.address}:8080")
        sock_destroy.destroy(client.pid, fact)
        kernel.wait_until(lambda: "failed: 103" in client.log(), "its end")


def test_without_the_kernels_own_way_it_is_shut_down(path: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another socket than the one that was meant is never touched, in either way."""
    program = [sys.executable, "-c", CLIENT, path.address]
    with targets.start(program, netns=path.client) as client:
        client.go()
        kernel.wait_for_call(client.pid, "recvfrom")
        fd = kernel.call(client.pid)[1][0]  # type: ignore[index]
        inode = kernel.socket_inode(client.pid, fd)
        fact = SocketFact((fd,), inode, "inet", "tcp", "ESTABLISHED", client.said, f"{path.address}:8080")
        other = SocketFact((fd,), inode + 1, "inet", "tcp", "ESTABLISHED", client.said, f"{path.address}:8080")
        for refused in (
            lambda: sock_destroy.destroy(client.pid, other),
            lambda: sock_destroy.shut_down(client.pid, fd, other),
        ):
            with pytest.raises(CannotInspect):
                refused()
        assert kernel.in_call(client.pid, "recvfrom")
        assert sock_destroy.can_destroy(client.pid, fact)
        assert kernel.in_call(client.pid, "recvfrom")
        unsticker = unstick.Unsticker(client.pid, Options())
        # As where the path came back behind the verdict: the next retransmission would heal it.
        with pytest.raises(Refused, match="acknowledged a probe"):
            unsticker._asked(client.pid, fact)
        plan = unstick.Plan(
            read_process(client.pid), fact, Finding("half-open", "proven", "", tid=client.pid), "", False
        )
        monkeypatch.setattr(unstick_watch, "WATCH_S", 0.3)
        unsticker._before, unsticker._call = frozenset({inode}), unstick_watch.call_of(plan)
        assert (unsticker.watch(plan).what, unsticker.watch(plan).good) == ("unchanged", False)
        sock_destroy.shut_down(client.pid, fd, fact)
        kernel.wait_for_call(client.pid, "clock_nanosleep")
        assert "failed" not in client.log()
        outcome = unsticker.watch(plan)
        assert outcome.what == "went-on" and "has not connected again" in outcome.text, outcome
