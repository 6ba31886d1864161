"""One sink's thread: delivers what waits for it, oldest first, and tries again with growing pauses."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from stucktrace.diagnosis.words import age
from stucktrace.output import OutputFailed
from stucktrace.sinks.backlog import Backlog
from stucktrace.sinks.sink import Sink, SinkDown, SinkRefused, SinkStatus, unpack

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
LONGEST_RETRY_AFTER_S = 3600.0

Complain = Callable[[str, str], None]


class Lane:
    def __init__(self, sink: Sink, backlog: Backlog, complain: Complain) -> None:
        self.backlog = backlog
        self.failed: OutputFailed | None = None
        self._sink, self._complain = sink, complain
        self._delivered = self._refused = 0
        self._last_error = ""
        self._down_since: float | None = None
        self._tries = 0
        self._dropped = 0
        """How many were told of."""
        self._said_dropping = False
        self._refusal = ""
        self._ending = self._abandoned = False
        self._thread = threading.Thread(target=self._work, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._sink.name

    @property
    def status(self) -> SinkStatus:
        backlog = self.backlog
        return SinkStatus(
            self._delivered, backlog.dropped, self._refused, backlog.pending, self._last_error, backlog.size_bytes
        )

    def put(self, data: bytes) -> None:
        """Never waits."""
        if self._ending or self.failed:
            return
        self.backlog.add(data)
        self._say_dropped()

    def save(self) -> OSError | None:
        """Puts on disk what waits in memory only; the error when the disk refuses."""
        try:
            self.backlog.save()
        except OSError as error:
            return error
        return None

    def end(self) -> None:
        """What waits is tried once more, then the thread ends."""
        with self.backlog.changed:
            self._ending = True
            self.backlog.changed.notify_all()

    def join(self, deadline_s: float) -> None:
        """After the deadline the thread is left alone; it takes nothing more from the queue."""
        self._thread.join(max(0.0, deadline_s))
        self._abandoned = True

    def _work(self) -> None:
        changed = self.backlog.changed
        while not self._abandoned:
            try:
                taken = self.backlog.take()
                self._say_dropped()
                if taken is None:
                    with changed:
                        changed.wait_for(lambda: self.backlog.pending or self._ending)
                    if not self.backlog.pending:
                        break
                    continue
                entry, data = taken
                self._deliver(data)
            except SinkDown as error:
                self.backlog.put_back()
                if not self._pause(error):
                    break
            except OutputFailed as error:
                self.failed = error
                break
            else:
                if not self._abandoned:
                    self.backlog.done(entry)
        with suppress(Exception):
            self._sink.close()

    def _deliver(self, data: bytes) -> None:
        """Raises SinkDown and OutputFailed only."""
        try:
            self._sink.deliver(unpack(data))
        except (SinkDown, OutputFailed):
            raise
        except Exception as error:
            self._refused += 1
            self._last_error = error.reason if isinstance(error, SinkRefused) else f"{type(error).__name__}: {error}"
            if self._last_error != self._refusal:
                self._refusal = self._last_error
                self._complain(f"{self.name} refused an alert: {self._refusal}", "it is not sent there again")
            if not isinstance(error, SinkRefused) and os.environ.get("STUCKTRACE_DEBUG"):
                import traceback

                traceback.print_exception(error)
        else:
            self._delivered += 1
            self._last_error = ""
        self._works()

    def _works(self) -> None:
        dropped = self.backlog.dropped - self._dropped
        if self._down_since is not None:
            lost = f"; {dropped} alerts were dropped meanwhile" if dropped else ""
            self._complain(f"{self.name} works again after {age(time.monotonic() - self._down_since)}{lost}", "")
        elif self.backlog.pending > 1:
            return
        self._down_since, self._tries = None, 0
        self._dropped, self._said_dropping = self._dropped + dropped, False

    def _pause(self, error: SinkDown) -> bool:
        """Waits until it is time for another try; False when there shall be none."""
        ending = self._ending
        self._last_error = error.reason
        if self._down_since is None:
            self._down_since = time.monotonic()
            self._complain(f"{self.name}: {error.reason}", error.remedy or "alerts wait for it and are sent later")
        if error.retry_after_s is not None:
            pause_s = max(FIRST_RETRY_S, min(error.retry_after_s, LONGEST_RETRY_AFTER_S)) * random.uniform(1.0, 1.1)
        else:
            pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._tries, 10)) * random.uniform(0.5, 1.0)
        self._tries += 1
        with self.backlog.changed:
            self.backlog.changed.wait_for(lambda: self._ending, 0 if ending else pause_s)
        return not ending and not (self._ending and error.retry_after_s is not None)

    def _say_dropped(self) -> None:
        """Once, until it works again or nothing waits any more."""
        if self.backlog.dropped > self._dropped and not self._said_dropping:
            self._said_dropping = True
            self._complain(
                f"{self.name}: more alerts wait for it than fit, or cannot be read again: the oldest are dropped",
                "see why it does not take them",
            )
