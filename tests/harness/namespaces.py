"""Network namespaces with a veth pair between them, and cuts made with nftables inside them. All removed at the end.

Two namespaces, "here" (the client's) and "there" (the server's), on a /30 that no other test of this run uses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_counter = itertools.count()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Pair:
    """Two hosts that see each other."""

    here: str
    """Name of the client's namespace, for `ip netns exec`."""
    there: str
    here_address: str
    there_address: str

    def cut(self, port: int | None = None) -> None:
        """Drops what goes to or comes from `port` (all TCP without one), in the server's namespace, without a word."""
        match = f"tcp dport {port}" if port else "meta l4proto tcp"
        back = f"tcp sport {port}" if port else "meta l4proto tcp"
        self._nft("add table inet cut")
        self._nft("add chain inet cut in { type filter hook input priority 0; }")
        self._nft("add chain inet cut out { type filter hook output priority 0; }")
        self._nft(f"add rule inet cut in {match} drop")
        self._nft(f"add rule inet cut out {back} drop")

    def heal(self) -> None:
        self._nft("delete table inet cut")

    def _nft(self, rule: str) -> None:
        _run("ip", "netns", "exec", self.there, "nft", rule)


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """Two fresh namespaces."""
    number = next(_counter)
    key = f"{os.getpid():x}x{number}"
    here, there = f"st{key}a", f"st{key}b"
    # Addresses only have to be unique inside the two namespaces, which see nobody else.
    here_address, there_address = "10.99.0.1", "10.99.0.2"
    try:
        for name in (here, there):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", here, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", there)
        for name, address in ((here, here_address), (there, there_address)):
            _run("ip", "-n", name, "address", "add", f"{address}/30", "dev", "veth0")
            _run("ip", "-n", name, "link", "set", "veth0", "up")
        yield Pair(here, there, here_address, there_address)
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
