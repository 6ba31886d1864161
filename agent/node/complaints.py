"""What the agent says about itself on stderr: one line each, none again within a minute. Any thread may."""

from __future__ import annotations

import os
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
        complain(message, remedy)

    def failed(self, what: str, error: Exception) -> None:
        """Something of ours failed that should not have."""
        if os.environ.get("STUCKTRACE_DEBUG"):
            import traceback

            traceback.print_exc()
        self.say(f"{what}: {type(error).__name__}: {error}")
