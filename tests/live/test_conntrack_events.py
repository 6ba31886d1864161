"""Real conntrack tables in namespaces of their own: what is heard of them, and what they count."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from stucktrace.collectors import conntrack_events, conntrack_stats, netns
from stucktrace.collectors.conntrack_events import DESTROY, NEW, FlowEvent, Stream

from tests.harness import conntrack_table, namespaces, targets

TRACKED = """
add table inet t
add chain inet t c { type filter hook output priority 0; }
add rule inet t c ct state established accept
"""
TALKS = """
import os, signal, socket, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
listener = socket.create_server(("127.0.0.1", 9))
def pair():
    return socket.create_connection(("127.0.0.1", 9)), listener.accept()[0]
client, server = pair()
os.write(int(os.environ["READY_FD"]), f"{client.getsockname()[1]}\\n".encode())
while True:
    signal.sigwait([signal.SIGUSR1])
    client.sendall(b"x")
    for end in pair():
        end.close()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.sendto(b"x", ("127.0.0.1", 53))
"""


@pytest.fixture
def netns_name() -> Iterator[str]:
    with namespaces.pair() as pair:
        subprocess.run(["ip", "netns", "exec", pair.here, "nft", "-f", "-"], input=TRACKED, text=True, check=True)
        yield pair.here


@contextlib.contextmanager
def talker(name: str) -> Iterator[targets.Target]:
    with targets.start([sys.executable, "-c", TALKS], netns=name) as target:
        yield target


def next_events(stream: Stream) -> list[FlowEvent]:
    assert select.select([stream.fd], [], [], 60)[0], "no event"
    return stream.events()


def delete(name: str, *what: str) -> None:
    subprocess.run(["ip", "netns", "exec", name, "conntrack", "-D", *what], check=True, capture_output=True)


def test_only_what_happens_to_a_live_connection_is_heard(netns_name: str) -> None:
    """Not that one opens and closes, nor anything of UDP."""
    with talker(netns_name) as target, contextlib.closing(Stream(target.pid)) as stream:
        port = int(target.said)
        delete(netns_name, "-p", "tcp", "--orig-port-src", str(port))
        # With nf_conntrack_events=2 the entry goes without a word if it is older than any listener; the new one does not.
        target.go()
        while [event.kind for event in next_events(stream)][-1] != NEW:
            pass
        delete(netns_name, "-p", "tcp", "--orig-port-src", str(port))
        (gone,) = next_events(stream)
        assert gone.kind == DESTROY and 0 <= time.monotonic() - gone.time_s < 600
        local = socket.inet_aton("127.0.0.1")
        assert conntrack_events.Tuple(local, port, local, 9) in conntrack_events.tuples(gone)
        delete(netns_name, "-p", "udp")
        target.go()
        (back,) = next_events(stream)
        assert (back.kind, back.orig) == (NEW, gone.orig) and not stream.events()
        assert stream.overruns == 0 and not stream.dump_again


def test_lost_events_are_counted_and_ask_for_a_dump(netns_name: str) -> None:
    with talker(netns_name) as target, contextlib.closing(Stream(target.pid)) as stream:
        conntrack_table.fill(netns_name, 40000)
        subprocess.run(["ip", "netns", "exec", netns_name, "conntrack", "-F"], check=True, capture_output=True)
        assert next_events(stream)
        assert stream.overruns > 0 and stream.dump_again


def test_fill_and_drops(netns_name: str) -> None:
    """Of that namespace alone. The table is filled up to the node's own limit, which nobody may change."""
    with talker(netns_name) as target:
        before = conntrack_stats.read(target.pid)
        assert before is not None and before.netns == netns.inode_of(target.pid)
        assert before.maximum and 0 < before.count < 10 and before.drop == 0
        conntrack_table.fill(netns_name, before.maximum)
        full = conntrack_stats.read(target.pid)
        assert full is not None and full.fill is not None and full.fill > 0.99
        code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)"
        done = subprocess.run(["ip", "netns", "exec", netns_name, sys.executable, "-c", code], capture_output=True)
        assert b"TimeoutError" in done.stderr
        after = conntrack_stats.read(target.pid)
        assert after is not None and after.drop > full.drop
        own = conntrack_stats.read()
        assert own is not None and own.netns == netns.own() != after.netns


def test_without_the_capability(netns_name: str) -> None:
    code = "from stucktrace.collectors import conntrack_events as e, conntrack_stats as s\nfor f in (e.Stream, s.read):\n try: f()\n except PermissionError: print('refused')"
    prefix = ["ip", "netns", "exec", netns_name, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"]
    done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused"], done.stderr
