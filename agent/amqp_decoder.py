"""The child process of `stucktrace amqp`: reads packets or a capture file, decodes, and tells its parent what it saw.

It is forked before anything else, so that what is slow to import (scapy) is imported while the parent looks for the
connections. It parses what strangers sent, so it gives up all capabilities first. Both ends speak lines of JSON.

From the parent: {"capture": ...} with the packet socket (and the --pcap file), or {"file": ...} with a capture file;
{"follow": [...], "about": [...]}, {"end": true}. To the parent: {"ready": true}, {"facts": [...], "now": ...,
"notices": [...], "not_kept": number}, {"stranger": [source, destination]}, {"foreign": [local, remote]},
{"unwritten": why}, {"unreadable": why}, {"failed": why}, {"end": true}.
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
from contextlib import suppress
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
_PARENT_ENDED = signal.SIGUSR2
"""Not SIGKILL: the packet file is written to its end first."""
_SO_SNDBUFFORCE = 32
_ORDERS_BYTES = 16 << 20
"""Room for the names of a hundred thousand connections."""
_CAPABILITY_VERSION = 0x20080522
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGPIPE)


def start() -> tuple[int, socket.socket]:
    """(pid, this end of the channel) of a child that waits for its orders."""
    ours, theirs = socket.socketpair()
    with suppress(PermissionError):
        # Neither may wait for the other to read while that waits for it.
        ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ORDERS_BYTES)
    parent = os.getpid()
    child = os.fork()
    if child:
        theirs.close()
        return child, ours
    try:
        ours.close()
        _prepare(parent)
        _serve(Channel(theirs))
    except (SystemExit, BrokenPipeError, ConnectionResetError):
        # The parent has ended.
        pass
    except BaseException as error:
        if os.environ.get("STUCKTRACE_DEBUG"):
            import traceback

            traceback.print_exc()
        with suppress(OSError):
            Channel(theirs).tell({"failed": f"{type(error).__name__}: {error}"[:300]})
    finally:
        os._exit(0)


def _prepare(parent: int) -> None:
    """Signals are the parent's affair, and no right is left that reading open files does not need."""
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, _PARENT_ENDED, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # struct __user_cap_header_struct, and twice __user_cap_data_struct: no capability in any set.
    libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24))


class Channel:
    """The child's end."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        self._data = b""
        self.fds: list[int] = []
        """That came with the orders."""

    def fileno(self) -> int:
        return self._parent.fileno()

    def tell(self, message: dict[str, Any]) -> None:
        self._parent.sendall(json.dumps(message).encode() + b"\n")

    def order(self) -> dict[str, Any]:
        """The next one. The process ends when the parent has."""
        while b"\n" not in self._data:
            data, fds, _, _ = socket.recv_fds(self._parent, 1 << 16, 4)
            self.fds += fds
            if not data:
                raise SystemExit
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order

    def ready(self) -> bool:
        return b"\n" in self._data or bool(select.select([self._parent], [], [], 0)[0])


def _serve(channel: Channel) -> None:
    # While the parent is busy.
    from stucktrace.amqp_reading import Capture, read_file

    # Until here that signal simply ends it: an import swallows what is raised. From here on a packet file is closed.
    signal.signal(_PARENT_ENDED, lambda *_: sys.exit())
    channel.tell({"ready": True})
    order = channel.order()
    if "capture" in order:
        Capture(channel).run()
    else:
        read_file(channel)
