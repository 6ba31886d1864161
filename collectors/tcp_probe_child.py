"""A program of its own: sends keepalive-shaped TCP segments for another process's connections, reads the answers.

Source: raw IP sockets in the target's network namespace. What is sent passes routing, conntrack and packet filters as
the target's own segments do; what is read was delivered to this very host and translated back like theirs, so that a
reply which the target's TCP would not get is none here either. scapy costs 80 MB, so it is loaded here alone. Speaks
JSON lines on stdin and stdout: the connections, "ready", then one line each way for every try. Imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SO_ATTACH_FILTER, SO_MARK, IP_FREEBIND, IPV6_FREEBIND = 26, 36, 15, 78
NETWORK_HEADER = -0x100000
"""SKF_NET_OFF: offsets from here on count from the IP header."""
HALF = 1 << 31
FIN, SYN, RST, ACK = 1, 2, 4, 16
SAYS = ("", "sends", "alive", "reset")
"""What a segment can say, the most telling last."""
LD_WORD, LD_HALF, LD_HALF_AT_X, LDX_HEADER, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x48, 0xB1, 0x15, 0x06
"""Classic BPF (linux/bpf_common.h)."""


class Connection:
    """One connection as its own end sees it, with a socket to send for it and one to hear its peer."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.family = asked["family"]
        self.local, self.remote = asked["local"], asked["remote"]
        self.local_port, self.remote_port = asked["local_port"], asked["remote_port"]
        self.interface = asked["interface"]
        self.hears = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.hears.setblocking(False)
        self.hears.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, self._filter())
        self.sends = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        level, freebind = (socket.IPPROTO_IP, IP_FREEBIND)
        if self.family == socket.AF_INET6:
            level, freebind = (socket.IPPROTO_IPV6, IPV6_FREEBIND)
        # Routed like a segment of the target: by its address, its mark, its interface.
        for each in (self.hears, self.sends):
            each.setsockopt(level, freebind, 1)
        if asked["mark"]:
            self.sends.setsockopt(socket.SOL_SOCKET, SO_MARK, asked["mark"])
        if self.interface:
            name = socket.if_indextoname(self.interface).encode()
            self.sends.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        self.sends.bind(self._address(self.local))
        # Other hosts' packets do not even get as far as the filter; where there is no route, they do.
        self.hears.bind(self._address(self.local))
        with suppress(OSError):
            self.hears.connect(self._address(self.remote))
        with suppress(BlockingIOError):
            while self.hears.recv(1):  # what came in before the filter stood
                pass
        self.finished = False
        """The peer closed its side while it was asked."""

    def _address(self, host: str) -> tuple[Any, ...]:
        return (host, 0) if self.family == socket.AF_INET else (host, 0, 0, self.interface)

    def _filter(self) -> bytes:
        """Exactly the segments of the peer to this connection; anything else never leaves the kernel.

        An IPv4 raw socket is given the packet from the IP header on, an IPv6 one from the TCP header on.
        """
        checks = [
            (LD_WORD, NETWORK_HEADER + offset + at, int.from_bytes(address[at : at + 4], "big"))
            for offset, address in self._addresses()
            for at in range(0, len(address), 4)
        ]
        load_port = LD_HALF_AT_X if self.family == socket.AF_INET else LD_HALF
        checks += [(load_port, 0, self.remote_port), (load_port, 2, self.local_port)]
        lines = [(LDX_HEADER, 0, 0, 0)] if self.family == socket.AF_INET else []
        for left, (load, at, value) in zip(reversed(range(len(checks))), checks, strict=True):
            # Past the other checks, two lines each, and the line that accepts.
            lines += [(load, 0, 0, at & 0xFFFFFFFF), (JUMP_EQUAL, 0, 2 * left + 1, value)]
        lines += [(RETURN, 0, 0, 0xFFFF), (RETURN, 0, 0, 0)]
        packed = b"".join(struct.pack("=HBBI", *line) for line in lines)
        self._program = ctypes.create_string_buffer(packed)
        return struct.pack("@HxxxxxxP", len(lines), ctypes.addressof(self._program))

    def _addresses(self) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        """Where source and destination stand in the IP header of what the peer sends, and which they are."""
        first, second = (12, 16) if self.family == socket.AF_INET else (8, 24)
        return (
            (first, socket.inet_pton(self.family, self.remote)),
            (second, socket.inet_pton(self.family, self.local)),
        )

    def segment(self, numbers: dict[str, Any]) -> bytes:
        """As tcp_xmit_probe_skb has it: no data, one before what the peer has acknowledged."""
        from scapy.layers.inet import IP, TCP
        from scapy.layers.inet6 import IPv6

        kind = IP if self.family == socket.AF_INET else IPv6
        options = [("NOP", None), ("NOP", None), ("Timestamp", tuple(numbers["stamps"]))] if numbers["stamps"] else []
        built = kind(src=self.local, dst=self.remote) / TCP(
            sport=self.local_port,
            dport=self.remote_port,
            seq=numbers["seq"],
            ack=numbers["ack"],
            window=numbers["window"],
            flags="A",
            options=options,
        )
        return bytes(built)

    def send(self, segment: bytes) -> str:
        """Returns why it could not be sent."""
        try:
            self.sends.sendto(segment, self._address(self.remote))
        except OSError as error:
            return os.strerror(error.errno or 0)
        return ""

    def heard(self) -> list[tuple[int, int, int, bool]]:
        """(flags, sequence number, acknowledged number, carries data) of each segment from the peer that waits."""
        found: list[tuple[int, int, int, bool]] = []
        while True:
            try:
                data = self.hears.recv(4096)
            except BlockingIOError:
                return found
            except OSError:
                # An ICMP message about what was sent; it says nothing of the connection that TCP would believe.
                continue
            at = 4 * (data[0] & 15) if self.family == socket.AF_INET and data else 0
            if len(data) >= at + 20:
                source, target, seq, ack, header, flags = struct.unpack_from("!HHIIBB", data, at)
                if (source, target) == (self.remote_port, self.local_port):
                    found.append((flags, seq, ack, len(data) > at + 4 * (header >> 4)))
                    self.finished |= bool(flags & FIN)

    def answer(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """What the segments heard since the last call say: "reset", "alive", "sends" (data of its own, which need not
        be an answer), or "" (nothing, or nothing of this connection); with the numbers of that segment."""
        best: dict[str, Any] = {"answer": ""}
        for flags, seq, ack, data in self.heard():
            said = ""
            if flags & RST:
                # A real one answers our ACK, or continues the stream: RFC 5961 asks for this very number.
                said = "reset" if seq == numbers["ack"] else ""
            elif flags & ACK and not flags & SYN and (ack - numbers["seq"] - 1) % (2 * HALF) < HALF:
                # What is acknowledged but was never sent is for who has the newest numbers to find.
                said = "sends" if data else "alive"
            if SAYS.index(said) > SAYS.index(best["answer"]):
                best = {"answer": said, "seq": seq, "ack": ack}
        return best


def one_try(connections: list[Connection], asked: list[dict[str, Any]], wait_s: float) -> list[dict[str, Any]]:
    """Sends one segment for each connection asked for, and waits until all peers answered or the time is over."""
    answers: dict[int, dict[str, Any]] = {}
    silent: dict[int, tuple[dict[str, Any], float]] = {}
    for numbers in asked:
        connection = connections[numbers["index"]]
        segment = connection.segment(numbers)
        connection.heard()  # what came before this segment is no answer to it
        silent[connection.hears.fileno()] = numbers, time.monotonic()
        answers[numbers["index"]] = {"answer": "", "after_s": None, "error": connection.send(segment)}
    until = time.monotonic() + wait_s
    while silent and (left_s := until - time.monotonic()) > 0:
        for fd in select.select(list(silent), [], [], left_s)[0]:
            numbers, sent = silent[fd]
            said = connections[numbers["index"]].answer(numbers)
            known = answers[numbers["index"]]
            if SAYS.index(said["answer"]) > SAYS.index(known["answer"]):
                known.update(said, after_s=time.monotonic() - sent)
            if known["answer"] not in ("", "sends"):
                del silent[fd]
    return [{"index": index, "finished": connections[index].finished, **answer} for index, answer in answers.items()]


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    import logging

    logging.getLogger("scapy").setLevel(logging.CRITICAL)
    begin = json.loads(sys.stdin.readline())
    import scapy.layers.inet6  # noqa: F401  half a second: before anything is timed

    libc = ctypes.CDLL(None, use_errno=True)
    if begin["netns"] is not None and libc.setns(begin["netns"], CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    connections = [Connection(each) for each in begin["connections"]]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(one_try(connections, asked["segments"], asked["wait_s"])), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as failure:
        number = failure.errno if isinstance(failure, OSError) else None
        text = str(failure.strerror) if isinstance(failure, OSError) else f"{type(failure).__name__}: {failure}"
        print(json.dumps({"error": text, "errno": number}), flush=True)
        sys.exit(1)
