"""The packet socket: each packet once and with its time, of the connections asked for; what is lost is counted."""

from __future__ import annotations

import os
import select
import socket
import time

import pytest
from stucktrace.collectors import capture, packets
from stucktrace.collectors.packet_file import RAW_IP
from stucktrace.collectors.packet_filter import Flow


def connected(family, address):
    with socket.create_server((address, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server.accept()[0]


def flow_of(client, family):
    (local, local_port), (remote, remote_port) = client.getsockname()[:2], client.getpeername()[:2]
    return Flow(socket.inet_pton(family, local), local_port, socket.inet_pton(family, remote), remote_port)


def payloads(reader, wanted):
    """What the segments carry, until so many did."""
    found = []
    while len(found) < wanted:
        assert select.select([reader], [], [], 60)[0], f"{len(found)} of {wanted} segments"
        while (packet := reader.read()) is not None:
            segment = packets.segment(RAW_IP, packet[1], packet[0])
            assert abs(time.time() - packet[0]) < 60
            if segment.payload:
                found.append((segment.source, segment.payload))
    return found


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_both_ways_once_and_of_one_connection(family, address):
    client, server = connected(family, address)
    stranger, other = connected(family, address)
    with client, server, stranger, other:
        opened = capture.open_in(os.getpid(), [flow_of(client, family)])
        reader = capture.Reader(os.dup(opened.fileno()))
        for number in range(200):
            if number == 100:
                reader.follow([flow_of(stranger, family), flow_of(client, family)])
            client.send(b"%d" % number)
            assert server.recv(9)
            server.send(b"answer")
            assert client.recv(9)
            stranger.send(b"before" if number < 100 else b"after")
            assert other.recv(9)
        found = [data for _, data in payloads(reader, 500)]
        assert [data for data in found if data.isdigit()] == [b"%d" % number for number in range(200)]
        assert (found.count(b"answer"), found.count(b"after"), found.count(b"before")) == (200, 100, 0)
        opened.count()
        assert opened.drops == 0 and opened.packets >= 500
        reader.hold()
        client.send(b"more")
        assert server.recv(9) == b"more" and reader.read() is None
        opened.close()


def test_what_nobody_read_in_time_is_counted(monkeypatch):
    monkeypatch.setattr(capture, "BUFFER_BYTES", 4096)
    client, server = connected(socket.AF_INET, "127.0.0.1")
    with client, server:
        opened = capture.open_in(os.getpid(), [flow_of(client, socket.AF_INET)])
        for _ in range(300):
            client.send(b"x" * 100)
            assert server.recv(100)
        opened.count()
        opened.count()
        reader = capture.Reader(os.dup(opened.fileno()))
        read = 0
        while reader.read() is not None:
            read += 1
        assert opened.drops > 0 and read + opened.drops == opened.packets
        opened.close()
