"""Asks the peer's TCP whether a connection still lives, without touching the socket of the process that owns it.

One segment shaped like the kernel's own keepalive probe (no data, one before what the peer has acknowledged) makes a
living peer acknowledge and one that knows nothing of the connection reset it; silence after three says that nothing
comes back. Its numbers and time stamps come from the sockets iterator just before each segment (with time stamps in
use, RFC 7323 has a segment without them dropped); it is built, sent and its answer heard by tcp_probe_child.py. A reset
reaches the target's own TCP too, and ends the connection there, as it would end it with the next byte that it sends.
Needs BPF, CAP_NET_RAW, and for another network namespace CAP_SYS_ADMIN. A probe changes nothing else at the target, but
conntrack on the way may take it for a new flow where it forgot the old one.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stucktrace.collectors import events, netns, permission
from stucktrace.collectors.addresses import bare
from stucktrace.collectors.events import SocketRecord
from stucktrace.collectors.kernel import Kernel
from stucktrace.errors import CollectorError
from stucktrace.facts import ProbeFact

WHAT = "probe of the connection"
CHILD = Path(__file__).with_name("tcp_probe_child.py")
TRIES = 3
TRY_S = 0.9
"""Longer than tcp_invalid_ratelimit, by which Linux answers such a segment of one connection only every 500 ms."""
START_S = 15.0
ANSWER_S = 5.0
"""More than a try takes, on a machine busy to death."""
TCP, ESTABLISHED = 6, 1
MS_NS, US_NS = 1_000_000, 1_000
STAMP_NS = {1: MS_NS, 2: US_NS}
"""enum timestamp_unit: how long one tick of a connection's time stamps is."""
WORD = 1 << 32
FILTERED = os.strerror(errno.EPERM)


class Unaskable(CollectorError):
    """These connections cannot be asked about, now or later."""


def probe(pid: int, inodes: Collection[int], kernel: Kernel | None) -> Mapping[int, ProbeFact]:
    """inode -> what the peer's TCP said, for those of `inodes` that are established TCP connections of `pid`.

    One that ended by itself meanwhile, or that its peer closed, is left out: nothing was learned. Takes up to 3 s, all
    at once. CollectorError where it cannot be done at all, or for none of them.
    """
    if kernel is None or not kernel.iterates:
        raise CollectorError(WHAT, "the sequence numbers of a connection are told by BPF alone", _by_bpf())
    records = _records(kernel, pid, inodes)
    askable = {inode: record for inode, record in records.items() if not _why_not(pid, record)}
    if records and not askable:
        raise Unaskable(
            WHAT, _why_not(pid, next(iter(records.values()))), "SO_KEEPALIVE on it: the kernel then asks by itself"
        )
    if not askable:
        return {}
    order = tuple(askable)
    child = _Child(pid)
    try:
        child.begin([_connection(records[inode]) for inode in order])
        return _ask(child, kernel, pid, order)
    finally:
        child.close()


@dataclass(frozen=True)
class _Asked:
    """How far the asking for one connection is."""

    began: float
    tries: int = 0
    error: str = ""
    alive: bool = False
    after_s: float | None = None
    """None although it lives: it sends, but acknowledged no probe."""
    unreceived_bytes: int = 0


def _ask(child: _Child, kernel: Kernel, pid: int, order: tuple[int, ...]) -> dict[int, ProbeFact]:
    open_ones = {inode: _Asked(time.monotonic()) for inode in order}
    found: dict[int, ProbeFact] = {}
    for number in range(1, TRIES + 1):
        records = _records(kernel, pid, open_ones)
        open_ones = {inode: asked for inode, asked in open_ones.items() if inode in records}
        if not open_ones:
            break
        began = time.monotonic()
        segments = [_segment(order.index(inode), records[inode]) for inode in open_ones]
        answers = child.say({"segments": segments, "wait_s": TRY_S}, TRY_S + ANSWER_S)
        after = _records(kernel, pid, open_ones)
        for answer in answers:
            inode = order[answer["index"]]
            asked = replace(open_ones[inode], tries=number, error=answer["error"])
            if answer["answer"] == "reset":
                if answer["finished"]:
                    # It closes at this very moment: a reset now would say nothing of the time before.
                    del open_ones[inode]
                    continue
                if not _outlives(kernel, pid, inode):
                    del open_ones[inode]
                    found[inode] = _fact("reset", replace(asked, after_s=answer["after_s"]))
                    continue
            elif inode not in after:
                del open_ones[inode]
                continue
            elif answer["answer"]:
                asked = _heard(asked, answer, records[inode], after[inode])
            open_ones[inode] = asked
            if asked.after_s is not None and not asked.unreceived_bytes:
                del open_ones[inode]
                found[inode] = _fact("alive", asked)
        if open_ones and number < TRIES:
            time.sleep(max(0.0, began + TRY_S - time.monotonic()))
    # A filter may let the process out and not us: that tells nothing.
    filtered = [inode for inode, asked in open_ones.items() if asked.error == FILTERED and not asked.alive]
    for inode, asked in open_ones.items():
        if inode not in filtered:
            found[inode] = _fact("alive" if asked.alive else "unreachable", asked)
    if filtered and not found:
        because = f"a packet filter of this host does not let it out ({FILTERED})"
        raise Unaskable(WHAT, because, "see the output rules: nft list ruleset, in the network namespace")
    return found


def _heard(asked: _Asked, answer: Mapping[str, Any], before: SocketRecord, now: SocketRecord) -> _Asked:
    """With what a segment of the living peer says. One that acknowledges what was never sent is of another connection.

    Its sequence number tells what the peer has sent: where that has not come in by now, it is on its way or lost. While
    data comes in at all, something always is, and where there is no room for more, a peer may still try one byte.
    """
    if (now.snd_nxt - answer["ack"]) % WORD >= WORD // 2:
        return asked
    ahead = (answer["seq"] - now.rcv_nxt) % WORD
    after_s = answer["after_s"] if answer["answer"] == "alive" else asked.after_s
    stands = now.rcv_nxt == before.rcv_nxt and now.receive_window_bytes > 0
    lost = ahead if ahead < WORD // 2 and stands else 0
    return replace(asked, alive=True, after_s=after_s, unreceived_bytes=lost)


def _fact(said: str, asked: _Asked) -> ProbeFact:
    seconds = time.monotonic() - asked.began
    return ProbeFact(said, asked.tries, seconds, asked.after_s, asked.error, time.time(), asked.unreceived_bytes)


def _why_not(pid: int, record: SocketRecord) -> str:
    """Why a connection cannot be asked about in the way of its owner; "": it can."""
    if record.signed_segments:
        return "its segments are signed (TCP-MD5 or TCP-AO), and one without a signature is dropped"
    namespace = netns.inode_of(pid)
    if namespace is not None and record.netns != namespace:
        return "the connection belongs to another network namespace than its process"
    return ""


def _outlives(kernel: Kernel, pid: int, inode: int) -> bool:
    """The target's own TCP did not believe the reset: it was forged, or old."""
    for _ in range(5):
        if inode not in _records(kernel, pid, (inode,)):
            return False
        # A process inside a call on its socket takes it up when that call lets it.
        time.sleep(0.02)
    return True


def _records(kernel: Kernel, pid: int, inodes: Collection[int]) -> dict[int, SocketRecord]:
    """The established TCP connections among `inodes`, as they are now."""
    data = kernel.iterate("sockets", pid)
    found = {}
    for kind, offset in events.split(data):
        if kind == SocketRecord.KIND:
            record = SocketRecord.from_buffer_copy(data, offset)
            if record.inode in inodes and record.protocol == TCP and record.state == ESTABLISHED:
                found[record.inode] = record
    return found


def _connection(record: SocketRecord) -> dict[str, Any]:
    size = 4 if record.family == socket.AF_INET else 16
    local, remote = (bare(bytes(address)[:size]) for address in (record.local, record.remote))
    family = socket.AF_INET if len(remote) == 4 else socket.AF_INET6
    return {
        "family": family,
        "local": socket.inet_ntop(family, local),
        "remote": socket.inet_ntop(family, remote),
        "local_port": record.local_port,
        "remote_port": record.remote_port,
        "mark": record.mark,
        "interface": record.bound_interface,
    }


def _segment(index: int, record: SocketRecord) -> dict[str, Any]:
    """As the kernel's tcp_xmit_probe_skb and tcp_established_options would have it now."""
    stamps = None
    if record.timestamps:
        # Never ahead of the connection's own clock: the peer would drop its next segments as old.
        now = record.now_ns // STAMP_NS[record.timestamps] + record.timestamp_offset
        stamps = [now % WORD, record.timestamp_recent]
    return {
        "index": index,
        "seq": (record.snd_una - 1) % WORD,
        "ack": record.rcv_nxt,
        "window": min(record.receive_window_bytes >> record.receive_window_scale, 0xFFFF),
        "stamps": stamps,
    }


class _Child:
    """The program that sends and listens, in the network namespace of `pid`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._namespace = _namespace(pid)
        # A socket, not a pipe: writing to a child that died must not end us (SIGPIPE).
        self._line, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            # Isolated: what stands beside the program or in PYTHONPATH is not imported.
            [sys.executable, "-I", str(CHILD)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            pass_fds=() if self._namespace is None else (self._namespace,),
            # scapy would keep a cache in the home folder.
            env={**os.environ, "XDG_CACHE_HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"},
            start_new_session=True,
        )
        theirs.close()

    def begin(self, connections: list[dict[str, Any]]) -> None:
        """Has it loaded and its sockets open."""
        self.say({"netns": self._namespace, "connections": connections}, START_S)

    def say(self, message: dict[str, Any], within_s: float) -> Any:
        """The child's answer to one line."""
        until, line = time.monotonic() + within_s, b""
        try:
            self._line.sendall(json.dumps(message).encode() + b"\n", socket.MSG_NOSIGNAL)
            while not line.endswith(b"\n"):
                self._line.settimeout(max(0.001, until - time.monotonic()))
                part = self._line.recv(65536)
                if not part:
                    break
                line += part
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise CollectorError(WHAT, "the program that sends it ended or did not answer in time", "try again")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            if answer["errno"] is None:
                raise CollectorError(WHAT, answer["error"], "install stucktrace anew with its dependencies (scapy)")
            raise _refused(answer["error"], self._pid)
        return answer

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._line.close()
        if self._namespace is not None:
            os.close(self._namespace)


def _namespace(pid: int) -> int | None:
    """The target's network namespace to enter; None: it is ours."""
    try:
        if netns.inode_of(pid) == netns.own():
            return None
        return os.open(netns.path_of(pid), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(error.strerror or str(error), pid) from None


def _refused(because: str, pid: int) -> CollectorError:
    return CollectorError(WHAT, because.lower(), permission.to_enter(pid, "NET_RAW"))


def _by_bpf() -> str:
    absent = permission.lacking(*permission.FOR_BPF)
    return permission.remedy(*absent) if absent else "--engine core"
