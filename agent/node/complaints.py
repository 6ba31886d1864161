"""What the agent says about itself on stderr: one line each, none again within a minute. Any thread may."""

from __future__ import annotations

import os
import select
import threading
import time

from stucktrace.output import complain

EVERY_S = 60.0


class Complaints:
    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def say(self, message: str, remedy: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            self._said = {text: at for text, at in self._said.items() if now - at < EVERY_S}
            if message in self._said:
                return
            self._said[message] = now
        self.tell(message, remedy)

    def tell(self, message: str, remedy: str = "") -> None:
        """Says it each time; leaves it out while nobody reads stderr, for nobody shall wait for that."""
        room = select.poll()
        room.register(2, select.POLLOUT)
        if room.poll(0):
            complain(message, remedy)

    def failed(self, what: str, error: Exception) -> None:
        """Something of ours failed that should not have."""
        if os.environ.get("STUCKTRACE_DEBUG"):
            import traceback

            traceback.print_exc()
        self.say(f"{what}: {type(error).__name__}: {error}")
