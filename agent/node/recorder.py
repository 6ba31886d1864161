"""The flight recorder: the last minutes of what happened and was seen, and a journal of them around each alert.

Notes are one line each; of examinations the last few of each process are kept, encoded and compressed. Encoding and
writing happen in a thread of their own behind a bounded queue, in the order of the calls, so the loop never waits:
what does not fit is counted and left out. Without a directory no examination is kept at all.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from stucktrace import recording
from stucktrace.diagnosis.model import Budgets, Diagnosis
from stucktrace.facts import Snapshot
from stucktrace.recording import Examination
from stucktrace.siblings import Siblings
from stucktrace.sinks import journal

Json = dict[str, Any]
Process = tuple[int, int]
"""(pid, start time)."""

TIMELINE_S, TIMELINE_NOTES = 300.0, 100
MOST_NOTES = 3_000
LONGEST_MESSAGE = 500
LOOKS_OF_A_PROCESS = 4
LOOKS_BYTES = 3 << 20
"""Of all looks kept, compressed."""
MOST_LOOKS_WAITING, MOST_WAITING = 32, 1_000
"""For the thread: looks, which are large, and all together. Of hundreds in one fault a few looks tell enough."""
MOST_PROCESSES = 8
"""Of one alert whose looks are written."""
MOST_JOURNAL_BYTES = 16 << 20
MOST_ALERTS = 1_000


class Member(Protocol):
    """A process in an alert."""

    @property
    def pid(self) -> int: ...
    @property
    def start_time(self) -> int: ...


@dataclass(frozen=True)
class _Note:
    number: int
    at: float
    """CLOCK_MONOTONIC: steps of the other clock must not empty the timeline."""
    record: Json


@dataclass(frozen=True)
class _Look:
    number: int
    at: float
    packed: bytes


@dataclass
class _Alert:
    """What is remembered of an open alert."""

    path: Path
    processes: dict[Process, None] = field(default_factory=dict)
    """The representative first."""
    confidence: str = ""
    written: int = 0
    """The number of the last note or look that is in its journal, or was too old for it."""


class Recorder:
    def __init__(
        self, minutes: float, directory: Path | None, most_bytes: int, oldest_s: float, complain: Callable[[str], None]
    ) -> None:
        self._keep_s = minutes * 60
        self._directory = directory
        self._most_bytes = most_bytes
        self._oldest_s = oldest_s
        self._complain = complain
        self._lock = threading.Lock()
        self._number = 0
        self._notes: deque[_Note] = deque(maxlen=MOST_NOTES)
        self._looks: OrderedDict[Process, deque[_Look]] = OrderedDict()
        """The process that was looked at last comes last."""
        self._looks_bytes = 0
        self._alerts: OrderedDict[str, _Alert] = OrderedDict()
        self.left_out = 0
        """Looks and alert events that came too fast, or did not fit into their journal."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._looks_waiting = 0
        self._failed = False
        self._thread: threading.Thread | None = None
        if directory is not None:
            self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
            self._thread.start()
            self._jobs.put(self._prepare)

    def apply(self, most_bytes: int, oldest_s: float) -> None:
        """Other bounds of the directory, from the next journal on."""
        self._most_bytes, self._oldest_s = most_bytes, oldest_s

    def note(
        self, time_s: float, category: str, message: str, pid: int | None = None, data: Json | None = None
    ) -> None:
        """Something happened, at this CLOCK_REALTIME: to a process, or to the node."""
        record = recording.note(time_s, category, message[:LONGEST_MESSAGE], pid, data)
        now = time.monotonic()
        with self._lock:
            self._number += 1
            self._notes.append(_Note(self._number, now, record))
            while now - self._notes[0].at > self._keep_s:
                self._notes.popleft()

    def timeline(self, pids: Collection[int]) -> tuple[Json, ...]:
        """The latest notes about these processes and about the node, the oldest first."""
        latest: list[Json] = []
        for note in self._newest_notes(frozenset(pids), TIMELINE_S):
            latest.append({name: note.record[name] for name in ("time", "category", "message", "pid")})
            if len(latest) == TIMELINE_NOTES:
                break
        return tuple(reversed(latest))

    def _newest_notes(self, pids: Collection[int], within_s: float) -> Iterator[_Note]:
        earliest = time.monotonic() - within_s
        with self._lock:
            notes = list(self._notes)
        for note in reversed(notes):
            if note.at < earliest:
                return
            if note.record["pid"] is None or note.record["pid"] in pids:
                yield note

    def examined(
        self,
        snapshot: Snapshot,
        budgets: Budgets,
        incident: Any,
        diagnosis: Diagnosis,
        siblings: Siblings | None = None,
    ) -> None:
        """A process was looked at, for its own sake or because of an incident."""
        if self._thread is None:
            return
        with self._lock:
            if self._looks_waiting >= MOST_LOOKS_WAITING:
                self.left_out += 1
                return
            self._looks_waiting += 1
            self._number += 1
            number = self._number
        said = recording.said(diagnosis.verdict)
        examined = Examination(snapshot, budgets, said, siblings, incident=recording.of_incident(incident))
        self._jobs.put(lambda: self._keep(number, examined))

    def write(self, event: Json, members: Collection[Member]) -> None:
        """An alert was opened, updated or resolved, with these processes in it now."""
        if self._thread is None:
            return
        if self._jobs.qsize() >= MOST_WAITING:
            self.left_out += 1
            return
        processes, number = [(member.pid, member.start_time) for member in members], self._number
        self._jobs.put(lambda: self._write(event, processes, number))

    def close(self, deadline_s: float) -> None:
        """Writes what was asked for, as far as there is time."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(deadline_s)

    # From here on in the recorder's thread.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:
                self._complain(f"the flight recorder: {type(error).__name__}: {error}")

    def _keep(self, number: int, examined: Examination) -> None:
        """Encodes a look, and forgets older ones."""
        process = examined.snapshot.process.pid, examined.snapshot.process.start_time
        now = time.monotonic()
        with self._lock:
            self._looks_waiting -= 1
        packed = zlib.compress(journal.pack(recording.examination(examined)), 1)
        looks = self._looks.setdefault(process, deque())
        self._looks.move_to_end(process)
        looks.append(_Look(number, now, packed))
        self._looks_bytes += len(packed)
        if len(looks) > LOOKS_OF_A_PROCESS:
            self._looks_bytes -= len(looks.popleft().packed)
        while self._looks:
            oldest = next(iter(self._looks))
            if self._looks_bytes <= LOOKS_BYTES and now - self._looks[oldest][-1].at <= self._keep_s:
                break
            self._looks_bytes -= len(self._looks[oldest].popleft().packed)
            if not self._looks[oldest]:
                del self._looks[oldest]

    def _prepare(self) -> None:
        """Makes the directory, and removes what is left of a killed agent."""

        def prepare(directory: Path) -> None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            journal.prune(directory, self._most_bytes, self._oldest_s)

        self._on_disk(prepare)

    def _on_disk(self, function: Callable[[Path], None]) -> bool:
        """Whether it worked. One line says that it does not, until it does again."""
        assert self._directory is not None
        try:
            function(self._directory)
        except OSError as error:
            if not self._failed:
                self._complain(f"no journal can be written to {self._directory}: {os.strerror(error.errno or 0)}")
            self._failed = True
            return False
        self._failed = False
        return True

    def _write(self, event: Json, processes: list[Process], number: int) -> None:
        """`number`: of the last note or look before this event."""
        alert = self._alert(event, processes)
        if event["type"] == "resolved":
            self._alerts.pop(event["id"], None)
        elif alert.confidence == event["confidence"]:
            # Nothing new: its processes' looks are as they were.
            return

        def write(directory: Path) -> None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = alert.path if alert.path.exists() else None
            head = recording.alert(event) if before else recording.header(event["time"], event)
            full = before is not None and before.stat().st_size > MOST_JOURNAL_BYTES
            payloads = chain((journal.pack(head),), () if full else self._news(alert, number))
            self.left_out += journal.write(alert.path, payloads, before)
            journal.prune(directory, self._most_bytes, self._oldest_s)

        if self._on_disk(write):
            alert.confidence, alert.written = event["confidence"], number

    def _alert(self, event: Json, processes: list[Process]) -> _Alert:
        assert self._directory is not None
        alert = self._alerts.get(event["id"])
        if alert is None:
            path = self._directory / journal.name(event["time"], event["code"], event["id"])
            alert = self._alerts[event["id"]] = _Alert(path)
            if len(self._alerts) > MOST_ALERTS:
                self._alerts.popitem(last=False)
        if event["report"] is not None:
            process = event["report"]["process"]
            alert.processes.setdefault((process["pid"], process["start_time"]))
        alert.processes.update(dict.fromkeys(processes))
        return alert

    def _news(self, alert: _Alert, last: int) -> Iterator[bytes]:
        """The notes and looks up to this number that are not in its journal yet, in their order."""
        pids = {pid for pid, _ in alert.processes}
        shown = [process for process in alert.processes if process in self._looks][:MOST_PROCESSES]
        entries: list[_Note | _Look] = [*self._newest_notes(pids, self._keep_s)]
        for process in shown:
            entries += self._looks[process]
        for entry in sorted(entries, key=lambda entry: entry.number):
            if alert.written < entry.number <= last:
                yield zlib.decompress(entry.packed) if isinstance(entry, _Look) else journal.pack(entry.record)
