"""First signs of trouble on sockets anywhere on the node: at once, of the right socket, and not again and again."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from itertools import pairwise

import pytest
from stucktrace.collectors import kernel, tcp, trouble
from stucktrace.collectors.trouble import Trouble

from tests.harness.kernel import socket_inode, sockets, wait_until
from tests.harness.namespaces import pair
from tests.harness.scripts import running
from tests.live.test_peers import client, server
from tests.live.test_sockets import in_netns


class Events:
    """Everything that was told so far."""

    def __init__(self, stream: trouble.Stream) -> None:
        self.stream = stream
        self.told: list[Trouble] = []

    def of(self, inode: int, kind: str) -> list[Trouble]:
        self.told += self.stream.events()
        return [event for event in self.told if (event.inode, event.kind) == (inode, kind)]


@pytest.fixture
def events(core: kernel.Kernel) -> Iterator[Events]:
    stream = trouble.Stream(core)
    yield Events(stream)
    stream.close()
    assert core.lost_records() == 0


def test_the_first_retransmission(events: Events, core: kernel.Kernel):
    assert events.stream.missing == ()
    assert core.hooks["trouble"] == f"tp_btf/{','.join(trouble.HOOKS.values())}"
    with (
        pair() as hosts,
        running(server(hosts.there_address, 5672), *in_netns(hosts.there)),
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here,
    ):
        inode = socket_inode(here.pid, here.says["fd"])
        hosts.cut(5672)
        assert events.of(inode, "retransmit") == []
        here.tell("100")
        assert select.select([events.stream.fd], [], [], 60)[0]
        first = wait_until(lambda: events.of(inode, "retransmit"), "the first retransmission")[0]
        assert first.count == 1
        assert first.remote == f"{hosts.there_address}:5672"
        assert first.local.startswith(f"{hosts.here_address}:")
        assert first.netns == os.stat(f"/run/netns/{hosts.here}").st_ino != os.stat("/proc/self/ns/net").st_ino


LOSSY = """
add table inet lossy
add chain inet lossy in { type filter hook input priority 0; }
add rule inet lossy in tcp dport 5672 numgen random mod 3 == 0 drop
"""
READER = """
import json, socket
listener = socket.create_server((ADDRESS, 5672))
print("{}", flush=True)
connection = listener.accept()[0]
while connection.recv(65536): pass
"""


def test_a_storm_is_few_records_with_counts(events: Events, core: kernel.Kernel):
    with (
        pair() as hosts,
        running(READER.replace("ADDRESS", repr(hosts.there_address)), *in_netns(hosts.there)),
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here,
        tcp.watching((here.pid,), core) as window,
    ):
        inode = socket_inode(here.pid, here.says["fd"])

        def counted() -> int:
            """By the other program on the same tracepoint, which counts every one."""
            return sum(event.count for event in window.events().get(here.pid, ()) if event.kind == "retransmit")

        subprocess.run([*in_netns(hosts.there), "nft", "-f", "-"], input=LOSSY, text=True, check=True)
        while counted() < 40:
            assert here.tell("100000") == "sent"
        # What comes in the same second as a record is told with the next one: during the outage, later and later.
        hosts.cut(5672)
        here.tell("100")
        wait_until(lambda: sum(event.count for event in events.of(inode, "retransmit")) == counted(), "all are told")
        told = events.of(inode, "retransmit")
        assert len(told) < counted()
        assert all(after.time_s - before.time_s >= 1.0 for before, after in pairwise(told))


def test_a_reset(events: Events):
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname()) as here:
        other = listener.accept()[0]
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        inode = socket_inode(os.getpid(), here.fileno())
        (reset,) = wait_until(lambda: events.of(inode, "reset"), "the reset")
        (error,) = wait_until(lambda: events.of(inode, "error"), "what it does")
        assert (reset.count, error.count, error.error) == (1, 1, errno.ECONNRESET)
        assert (reset.local, reset.remote) == tuple(
            "{}:{}".format(*name) for name in (here.getsockname(), listener.getsockname())
        )
    listener.close()


def test_a_socket_that_its_holder_closed(events: Events):
    """The kernel goes on with its data, but it is nobody's trouble."""
    with (
        pair() as hosts,
        running(server(hosts.there_address, 5672), *in_netns(hosts.there)),
    ):
        with running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here:
            hosts.cut(5672)
            here.tell("100")

        def backoff() -> int:
            (row,) = [row for row in sockets(hosts.here) if row["remote"] == f"{hosts.there_address}:5672"]
            found = re.search(r"backoff:(\d+)", row["rest"])
            return int(found[1]) if found else 0

        before = wait_until(backoff, "a retransmission")
        events.told += events.stream.events()
        told = len(events.told)
        wait_until(lambda: backoff() > before + 1, "another one")
        events.of(0, "retransmit")
        assert not [event for event in events.told[told:] if event.remote == f"{hosts.there_address}:5672"]
        assert not [event for event in events.told if event.inode == 0]


def test_a_refused_connection_is_no_trouble(events: Events):
    """Its caller knows at once; a retry loop must not crowd out what matters."""
    with socket.socket() as closed, socket.socket() as here:
        closed.bind(("127.0.0.1", 0))
        inode = socket_inode(os.getpid(), here.fileno())
        with pytest.raises(ConnectionRefusedError):
            here.connect(closed.getsockname())
    assert events.of(inode, "reset") == events.of(inode, "error") == []
