"""What the suspended greenlets of a hub, and the suspended tasks of an event loop, wait for: by their frames, as for
threads. They say what a resting loop rests for; none of them is a verdict."""

from __future__ import annotations

from itertools import takewhile

from stucktrace.diagnosis import stacks
from stucktrace.facts import Frame, GreenletFact, Snapshot

_RECEIVES, _SENDS = "waits to receive from a socket", "waits to send on a socket"
_CONNECTS = "waits for a connection to be made"
_PRIMITIVES = {
    **dict.fromkeys(("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "read", "readinto"), _RECEIVES),
    **dict.fromkeys(("readline", "readexactly", "readuntil", "sock_recv"), _RECEIVES),
    **dict.fromkeys(("drain", "sock_sendall"), _SENDS),
    **dict.fromkeys(("create_connection", "open_connection", "sock_connect"), _CONNECTS),
    **dict.fromkeys(("send", "sendall", "sendto", "sendmsg", "write"), _SENDS),
    "connect": _CONNECTS,
    "accept": "waits for a connection to accept",
    "sleep": "sleeps",
    "acquire": "waits for a lock of its loop",
    "wait": "waits for a notification",
    "get": "waits for its queue",
    "put": "waits for room in its queue",
    **dict.fromkeys(("join", "joinall", "waitall"), "waits for others to end"),
    **dict.fromkeys(("select", "poll"), "waits for files to be ready"),
}
"""Functions that give way to the loop, by their bare name: gevent, eventlet and asyncio share them."""


def own_frame(frames: tuple[Frame, ...]) -> int:
    """The innermost frame that is not of an installed or standard library, else the innermost."""
    for index, frame in enumerate(frames):
        if not frame.native and "/lib/python" not in frame.file and "-packages/" not in frame.file:
            return index
    return 0


def wait_of(greenlet: GreenletFact) -> str:
    """In words; "" when nothing tells. Much of gevent is compiled and has no frames: the line says what it calls."""
    reading = stacks.read(greenlet.frames)
    if reading.reason and not reading.by_name:
        return reading.reason
    called = f"waits in {greenlet.calls}()" if greenlet.calls else ""
    return _primitive(greenlet.frames) or called or reading.reason


def _primitive(frames: tuple[Frame, ...]) -> str:
    """What the library's own function that was called waits for, the outermost one that tells."""
    inner = list(takewhile(_is_library, frames))
    functions = (frame.function.rpartition(".")[2] for frame in reversed(inner))
    return next((_PRIMITIVES[function] for function in functions if function in _PRIMITIVES), "")


def _is_library(frame: Frame) -> bool:
    return any(f"/{library}/" in frame.file for library in ("gevent", "eventlet", "asyncio"))


def of_thread(snapshot: Snapshot, tid: int) -> tuple[GreenletFact, ...]:
    """Those that can only go on when this thread runs its loop again; its own greenlet is not one of them."""
    return tuple(each for each in snapshot.greenlets if each.tid == tid and not each.main)


def holders(snapshot: Snapshot, lock: int) -> tuple[GreenletFact, ...]:
    """Those inside a `with` block of the lock at this address."""
    return tuple(each for each in snapshot.greenlets if any(address == lock for address, _ in each.locks))
