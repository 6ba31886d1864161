"""How `stucktrace amqp` shows what it knows: a table on a terminal, else a line for each event, or JSON lines.

However it ends, the terminal gets its screen, cursor and modes back before the summary is written.
"""

from __future__ import annotations

import os
import signal
import termios
import time
import tty
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from stucktrace.amqp_notices import Notice
from stucktrace.amqp_state import State, read
from stucktrace.collectors.capture import Capture
from stucktrace.diagnosis.words import count, listing
from stucktrace.output import OutputFailed, colour_wanted, complain, screen, write, write_json
from stucktrace.sinks import amqp as words
from stucktrace.sinks import amqp_table
from stucktrace.sinks.page import clean

EVENTS_SHOWN = 8


class Show:
    """A context: the screen is ours inside, where there is one."""

    def __init__(self, state: State, *, as_json: bool, title: str, until: str = "", screen: bool = True) -> None:
        self._state = state
        self._json = as_json
        self._title = title
        self._until = until
        self._screen = screen and not as_json and os.isatty(0) and os.isatty(1)
        self._modes: list[Any] | None = None
        self._events: list[str] = []
        self._began = time.time()
        self.lost = 0
        """Packets that could not be read in time."""

    def __enter__(self) -> Show:
        if self._screen:
            from stucktrace.watch import ENTER

            self._modes = termios.tcgetattr(0)
            tty.setcbreak(0, termios.TCSANOW)
            signal.signal(signal.SIGTSTP, lambda *_: None)
            write(ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        if self._modes is not None:
            from stucktrace.watch import LEAVE

            with suppress(OutputFailed):
                write(LEAVE)
            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._modes)
            self._modes = None

    def suspend(self) -> None:
        """Ctrl-Z: the terminal is somebody else's until we go on."""
        self.__exit__()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        self.__enter__()

    def keyboard(self) -> tuple[int, ...]:
        """The fd on which keys come."""
        return (0,) if self._screen else ()

    def left(self) -> bool:
        """`q` was pressed, or the terminal is gone."""
        if not self._screen:
            return False
        import select

        if not select.select([0], [], [], 0)[0]:
            return False
        try:
            keys = os.read(0, 64)
        except OSError:
            return True
        return not keys or b"q" in keys.lower()

    def begin(self) -> None:
        """From now on new connections are noticed, too."""
        if self._screen:
            self._draw()
        else:
            rows = self._state.rows()
            remotes = Counter(row.remote for row in rows)
            found = listing(
                f"{remote} ({number} connections)" if number > 1 else remote for remote, number in remotes.items()
            )
            others = len(self._state.connections) - len(rows)
            noun = "other connection" if found else "connection"
            also = f"{count(others, noun)} that may turn out to speak AMQP" if others else ""
            what = " and ".join(word for word in (found, also) if word) or "no outbound connection yet"
            complain(f"watching {self._title}: {what}", self._until)

    def tell(self, notices: Collection[Notice]) -> None:
        """What the decoder said was taken into the state, and this of it is news."""
        for notice in notices:
            if self._json:
                write_json(words.event_as_json(notice))
            elif self._screen:
                self._events = [*self._events, words.line(notice)][-EVENTS_SHOWN:]
            else:
                write(words.line(notice) + "\n")
        if self._modes is not None:
            self._draw()

    def _draw(self) -> None:
        from stucktrace.sinks.table import padded
        from stucktrace.watch import END_OF_LINE, HOLD, HOME, REST, SHOW

        columns, height = screen()
        width = columns - 1
        lost = f"  {count(self.lost, 'packet')} LOST" if self.lost else ""
        head = f"stucktrace amqp  {self._title}  {time.strftime('%H:%M:%S')}{lost}  (q ends)"
        body = amqp_table.table(self._state.rows()) or ["no AMQP connection yet"]
        room = max(2, height - 3 - min(len(self._events), EVENTS_SHOWN))
        lines = [head, "", *body[:room], "", *self._events]
        if colour_wanted() and len(lines) > 2:
            lines[2] = f"\x1b[1m{padded(lines[2], width).rstrip()}\x1b[0m"
        shown = [line if line.startswith("\x1b") else padded(line, width).rstrip() for line in lines[:height]]
        write(HOLD + HOME + "\r\n".join(line + END_OF_LINE for line in shown) + REST + SHOW)

    def end(self, ended: str, captured: Capture | None) -> None:
        """The summary, and one line on stderr for everything that went wrong."""
        state = self._state
        rows = state.rows()
        if self._json:
            for row in rows:
                write_json(words.summary_as_json(row, state.now))
        else:
            for number, row in enumerate(rows):
                write(("\n" if number else "") + "\n".join(words.summary(row)) + "\n")
        if ended:
            complain(ended, "what it did until then is above")
        if captured is not None and captured.drops:
            complain(
                f"{count(captured.drops, 'packet')} of {captured.packets} could not be read in time: counts may be low",
                "watch for a shorter time, or while less passes",
            )
        if state.not_kept:
            complain(
                f"more connections than are kept at once: {count(state.not_kept, 'segment')} of others were left out",
                "filter the capture by the broker's address" if not state.live else "",
            )
        if state.failed:
            complain(
                f"the decoder failed: {clean(state.failed)}", "report this; STUCKTRACE_DEBUG=1 shows the traceback"
            )
        if not any(row.fact is not None and read(row.fact) for row in rows):
            self._say_why_nothing()

    def _say_why_nothing(self) -> None:
        state = self._state
        encrypted = [key[1] for key, fact in state.facts.items() if fact.encrypted]
        if encrypted:
            because = f"what passed is encrypted (TLS, to {listing(dict.fromkeys(encrypted))})"
            remedy = "`stucktrace pid` reads the client's own memory"
        elif not (state.connections or state.gone or state.facts):
            because = f"{self._title} has no outbound TCP connection" if state.live else "no TCP connection is in it"
            remedy = "another process of its family may have it: `stucktrace pid` lists them" if state.live else ""
        elif state.live:
            known = listing(dict.fromkeys(row.remote for row in state.rows()))
            because = f"no AMQP frame passed in {time.time() - self._began:.0f} s" + (f" (to {known})" if known else "")
            remedy = "watch longer; `stucktrace pid` says what the process waits for"
        else:
            because, remedy = "no AMQP frames are in it", "only AMQP 0-9-1 is read"
        complain(f"nothing could be read: {because}", remedy)
