"""`stucktrace amqp`: watches the AMQP connections of a process, or reads a capture file, and says what passes.

This process finds the connections, holds the packet socket, counts the time and writes; the packets are decoded by a
child (amqp_decoder.py). Whichever of the two ends, the other follows, and the kernel takes socket and filter back.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stucktrace import amqp_decoder
from stucktrace.amqp_notices import Notice
from stucktrace.amqp_show import Show
from stucktrace.amqp_state import Key, State
from stucktrace.collectors import capture, outbound
from stucktrace.commands.common import worst
from stucktrace.diagnosis import network_probe
from stucktrace.errors import CannotInspect, UsageError
from stucktrace.facts import AmqpFact
from stucktrace.output import complain

LOOK_S = 1.0
"""How often the process's sockets are read again."""
STRANGERS_S = 0.02
"""Or sooner, but not more often, when a connection is opened that may be its own."""
END_S = 60.0
"""For the decoder to read what was captured before the end."""
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Decoder:
    """The child, seen from here."""

    def __init__(self) -> None:
        self._pid, self._channel = amqp_decoder.start()
        self._data = bytearray()
        self.ended = False

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, message: dict[str, Any], *fds: int) -> None:
        data = json.dumps(message).encode() + b"\n"
        with_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        # That it has ended shows when it is read from: it must not end us by a SIGPIPE (socket.send_fds has no flags).
        with suppress(BrokenPipeError, ConnectionResetError):
            sent = self._channel.sendmsg([data], with_it, socket.MSG_NOSIGNAL)
            self._channel.sendall(data[sent:], socket.MSG_NOSIGNAL)

    def read(self) -> Iterator[dict[str, Any]]:
        """The messages that are there; waits for the first bytes of one."""
        try:
            data = self._channel.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        self.ended = self.ended or not data
        self._data += data
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            yield message

    def pending(self) -> bool:
        return not self.ended and bool(select.select([self], [], [], 0)[0])

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class Ending:
    """Whether somebody wants us to end: a signal, or a key of the screen."""

    def __init__(self) -> None:
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in _ENDS:
            signal.signal(number, lambda *_: None)
        self.suspended = False
        """Ctrl-Z was pressed; for whoever took SIGTSTP over."""

    def fileno(self) -> int:
        return self._woken

    def wanted(self) -> bool:
        """Since the last question."""
        with suppress(BlockingIOError):
            told = set(os.read(self._woken, 4096))
            self.suspended = self.suspended or signal.SIGTSTP in told
            return bool(told & set(_ENDS))
        return False


def watch(pid: int, *, for_s: float | None, as_json: bool, pcap: Path | None = None, probe: bool = False) -> int:
    """Until the time is over, the process has ended, or a signal. The exit status."""
    decoder = Decoder()
    ending = Ending()
    sockets = outbound.of(pid)
    state = State()
    state.learn(sockets.look())
    captured = capture.open_in(pid, [flow for each in state.followed().values() for flow in each.flows])
    files = () if pcap is None else (create(pcap),)
    decoder.send({"capture": True}, captured.fileno(), *files)
    _follow(state, decoder, [])
    state.remembered = _remembered(pid)
    with Show(state, as_json=as_json, title=f"process {pid}", until="" if for_s else "Ctrl-C ends it") as show:
        if probe:
            show.tell(_probe(pid, state))
        watched = _Watch(decoder, ending, sockets, state, captured, show)
        ended = watched.run(for_s)
        decoder.send({"end": True})
        _finish(decoder, state, ending, show)
        captured.count()
    show.end(ended, captured)
    if state.unwritten:
        complain(f"{pcap} could not be written to its end: {state.unwritten}", "what is in it is whole")
    return worst({state.status(), 3 if state.failed or state.unwritten else 0})


def _remembered(pid: int) -> dict[Key, AmqpFact]:
    """What the client libraries' objects in the process's memory say, as far as they can be read."""
    from stucktrace.inspection import Inspection, Opening, inspect_all
    from stucktrace.run import Options

    options = Options("none", sample_s=0.0, children=False, siblings=False)
    answer = inspect_all((pid,), options, Opening("none").opened)[pid]
    facts = answer.snapshot.amqp if isinstance(answer, Inspection) else ()
    return {(fact.local, fact.remote): fact for fact in facts if fact.local and fact.remote}


def _probe(pid: int, state: State) -> list[Notice]:
    """Has the peers of the AMQP connections asked whether they live; takes up to 4 s, in which packets are kept."""
    from stucktrace import probing
    from stucktrace.errors import CollectorError

    inodes = {row.inode: (row.local, row.remote) for row in state.rows() if row.inode is not None}
    try:
        answers = probing.ask_alone(pid, inodes)
    except CollectorError as error:
        complain(f"no probe: {error.missing.because}", error.missing.remedy)
        return []
    state.probes = {inodes[inode]: answer for inode, answer in answers.items()}
    return [
        Notice(answer.time, *key, "probed", text=network_probe.words(answer, key[1]), age_s=answer.after_s)
        for key, answer in state.probes.items()
    ]


def create(path: Path) -> int:
    """The fd of a new file, for its owner's eyes only."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already", "give another name, or remove it") from None
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}") from None


@dataclass
class _Watch:
    decoder: Decoder
    ending: Ending
    sockets: outbound.Outbound
    state: State
    captured: capture.Capture
    show: Show

    def run(self, for_s: float | None) -> str:
        """Until something ends it. Why, where the process itself did."""
        now = time.monotonic()
        until = now + for_s if for_s is not None else float("inf")
        next_look = now + LOOK_S
        poll = select.poll()
        for fd in (self.decoder.fileno(), self.ending.fileno(), *self.show.keyboard()):
            poll.register(fd, select.POLLIN)
        strangers: list[Key] = []
        asked = 0.0
        while not (self.decoder.ended or self.ending.wanted() or self.show.left()):
            if self.ending.suspended:
                self.ending.suspended = False
                self.show.suspend()
            now = time.monotonic()
            due = min(next_look, asked + STRANGERS_S) if strangers else next_look
            if now >= until:
                break
            poll.poll(max(0.0, min(due, until) - now) * 1000)
            strangers += _take_all(self.decoder, self.state, self.show)
            now = time.monotonic()
            if now >= next_look or (strangers and now >= asked + STRANGERS_S):
                next_look = now + LOOK_S
                asked = now if strangers else asked
                try:
                    self._look(strangers)
                except CannotInspect as error:
                    self.state.learn(())
                    return error.message
                strangers = []
        return ""

    def _look(self, strangers: list[Key]) -> None:
        """Reads the process's sockets, and follows those that it has now."""
        if self.state.learn(self.sockets.look(again=bool(strangers))) or strangers:
            _follow(self.state, self.decoder, strangers)
        self.captured.count()
        self.show.lost = self.captured.drops


def _follow(state: State, decoder: Decoder, strangers: list[Key]) -> None:
    flows = [(*flow.names(), *key) for key, each in state.followed().items() for flow in each.flows]
    decoder.send({"follow": flows, "about": strangers})


def _take_all(decoder: Decoder, state: State, show: Show) -> list[Key]:
    """Everything that the decoder has said; the strangers that it asks about."""
    strangers: list[Key] = []
    while decoder.pending():
        for message in decoder.read():
            if "stranger" in message:
                source, destination = message["stranger"]
                strangers.append((source, destination))
            elif "ready" in message:
                show.begin()
            else:
                show.tell(state.take(message))
    return strangers


def _finish(decoder: Decoder, state: State, ending: Ending, show: Show) -> None:
    """Until the decoder has read all that was captured, or somebody asks a second time to end."""
    until = time.monotonic() + END_S
    poll = select.poll()
    for fd in (decoder.fileno(), ending.fileno()):
        poll.register(fd, select.POLLIN)
    done = False
    while not (done or decoder.ended or ending.wanted()) and (now := time.monotonic()) < until:
        ready = {fd for fd, _ in poll.poll((until - now) * 1000)}
        if decoder.fileno() in ready:
            for message in decoder.read():
                done = done or "end" in message
                show.tell(state.take(message))
    if not (done or state.failed or state.unreadable):
        state.failed = "it was ended before it had read all packets"
    decoder.end()


def read_file(path: str, *, as_json: bool) -> int:
    """What stands in a pcap or pcapng file ("-": stdin). The exit status."""
    name = "stdin" if path == "-" else path
    try:
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise IsADirectoryError(errno.EISDIR, "")
    except OSError as error:
        raise CannotInspect(f"cannot read {name}: {os.strerror(error.errno or 0)}", "give another file") from None
    decoder = Decoder()
    decoder.send({"file": path}, fd)
    os.close(fd)
    state = State(live=False)
    ending = Ending()
    show = Show(state, as_json=as_json, title=name, screen=False)
    _finish(decoder, state, ending, show)
    if state.unreadable:
        raise CannotInspect(f"{name} is no capture file: {state.unreadable}", "give a pcap or pcapng file")
    show.end("", None)
    return worst({state.status(), 3 if state.failed else 0})
