"""Network namespaces with a veth pair between them, and cuts made with nftables inside them. All removed at the end.

"here" is the client's namespace, "there" the server's; several clients can be wired to one server. Every link is a /30
of 198.18.0.0/15 (set aside for tests) that no other test of this machine uses meanwhile.

A cut drops what arrives, at both ends: a packet dropped on its way out would be an error to the sender's kernel, which
behaves differently then than in an outage.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

_counter = itertools.count()
FIRST = int(IPv4Address("198.18.0.0"))
LINKS = 1 << 15
CLONE_NEWNET = 0x40000000


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def run(netns: str, *command: str, text: str = "") -> str:
    """What the command says that is run in that namespace, with `text` on its stdin."""
    done = subprocess.run(["ip", "netns", "exec", netns, *command], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{text}{done.stderr}"
    return done.stdout


def listen(netns: str) -> socket.socket:
    """A server's socket on a free port of that namespace's loopback address: it stays there, whoever accepts."""
    found: list[socket.socket] = []

    def inside() -> None:
        with open(f"/run/netns/{netns}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
        found.append(socket.create_server(("127.0.0.1", 0)))

    # The namespace belongs to the thread, and goes with it.
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return found[0]


@dataclass(frozen=True)
class Pair:
    """Two hosts that see each other."""

    here: str
    """Name of the client's namespace, for `ip netns exec`."""
    there: str
    here_address: str
    there_address: str
    there_device: str

    def cut(self, port: int | None = None) -> None:
        """What this client and the server send each other to or from `port` (any TCP without one) is lost."""
        for netns, device in ((self.here, "veth0"), (self.there, self.there_device)):
            match = f"iifname {device} " + (f"th {{way}} {port}" if port else "")
            ways = ("dport", "sport") if port else ("",)
            rules = [f"add rule inet cut_{device} in meta l4proto tcp {match.format(way=way)} drop" for way in ways]
            chain = f"add chain inet cut_{device} in {{ type filter hook input priority 0; }}"
            self._nft(netns, "\n".join([f"add table inet cut_{device}", chain, *rules]))

    def heal(self) -> None:
        self._nft(self.here, "delete table inet cut_veth0")
        self._nft(self.there, f"delete table inet cut_{self.there_device}")

    def _nft(self, netns: str, rules: str) -> None:
        run(netns, "nft", "-f", "-", text=rules + "\n")


@contextlib.contextmanager
def pair(there: str = "") -> Iterator[Pair]:
    """A fresh client's namespace, wired to a fresh server's, or to that of a server that is up already."""
    number = next(_counter)
    key = f"st{os.getpid():x}x{number}"
    made = [f"{key}a"] if there else [f"{key}a", f"{key}b"]
    here, there = made[0], there or made[-1]
    device = f"veth{number}"
    base = FIRST + 4 * ((os.getpid() * 64 + number) % LINKS)
    here_address, there_address = str(IPv4Address(base + 1)), str(IPv4Address(base + 2))
    _remove_leftovers()
    try:
        for name in made:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", here, "link", "add", "veth0", "type", "veth", "peer", "name", device, "netns", there)
        for name, end, address in ((here, "veth0", here_address), (there, device, there_address)):
            _run("ip", "-n", name, "address", "add", f"{address}/30", "dev", end)
            _run("ip", "-n", name, "link", "set", end, "up")
        yield Pair(here, there, here_address, there_address, device)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _remove_leftovers() -> None:
    """Namespaces of a test run that was killed: the name begins with its pid."""
    for path in Path("/run/netns").glob("st*x*"):
        owner = re.fullmatch(r"st([0-9a-f]+)x\d+[ab]", path.name)
        if owner and not Path(f"/proc/{int(owner.group(1), 16)}").exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)
