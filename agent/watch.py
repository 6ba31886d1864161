"""`stucktrace ps --watch` on a terminal: the table on the alternate screen, drawn anew in one write each time.

The looks run in a thread of their own, so that `q` and Ctrl-C answer at once. However it ends (a key, a signal, an
error, a closed terminal) the terminal gets its screen, cursor and modes back; Ctrl-Z gives them back while it lasts.
"""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from stucktrace.diagnosis.model import HEALTHY
from stucktrace.facts import MASTERS
from stucktrace.output import OutputFailed, colour_wanted, screen, write
from stucktrace.ps import Table
from stucktrace.rows import Row
from stucktrace.sinks.table import padded, render, summary

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, REST = "\x1b[H", "\x1b[K", "\x1b[J"
HOLD, SHOW = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows them shows everything between the two at once; others ignore them."""
PAUSE_SHARE = 3
"""The pause between two looks is at least this many times as long as a look took, but for the first verdict of each."""
AT_A_TIME = 32
"""Processes inspected in a look: the table stays alive beside a hundred that are stuck."""
_ENDS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_HANDLED = (*_ENDS, signal.SIGTSTP, signal.SIGWINCH)
_NEW_ROWS = 0
"""What the looking thread writes into the pipe that signals write their number into."""


class _Looks:
    """Looks at the node in a thread of its own, for ever."""

    def __init__(self, table: Table, every_s: float, waker: int) -> None:
        self._table = table
        self._every_s = every_s
        self._waker = waker
        self.rows: tuple[Row, ...] | None = None
        self.at = ""
        self.error: Exception | None = None
        threading.Thread(target=self._work, name="looks", daemon=True).start()

    def _work(self) -> NoReturn:
        while True:
            began = time.monotonic()
            try:
                self._look()
            except Exception as error:
                self.error = error
                self._tell()
            took_s = time.monotonic() - began
            if not self._pending():
                time.sleep(max(self._every_s - took_s, PAUSE_SHARE * took_s if took_s > self._every_s / 2 else 0.0))

    def _look(self) -> None:
        first, at = self.rows is None, time.strftime("%H:%M:%S")
        for rows in self._table.look():
            if first:
                # Later ones are shown when they are complete: verdicts that come and go are no help.
                self.rows, self.at = rows, at
                self._tell()
        self.rows, self.at = rows, at
        self._tell()

    def _pending(self) -> bool:
        """Some have no verdict yet, though they keep to what they do: they are next."""
        return self._table.pending and self.error is None

    def _tell(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, bytes((_NEW_ROWS,)))


def on_terminal(table: Table, every_s: float) -> int:
    """Until a key, a signal or an error ends it. The exit status."""
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in _HANDLED:
        signal.signal(number, lambda *_: None)
    table.at_a_time = AT_A_TIME
    looks = _Looks(table, every_s, waker)
    while True:
        with _drawn():
            stopped = _until_left(looks, every_s, woken)
        if not stopped:
            return 0
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, lambda *_: None)


@contextmanager
def _drawn() -> Iterator[None]:
    """The terminal is ours inside, and as it was afterwards."""
    modes = termios.tcgetattr(0)
    try:
        tty.setcbreak(0, termios.TCSANOW)
        write(ENTER)
        yield
    finally:
        with suppress(OutputFailed):
            write(LEAVE)
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, modes)


def _until_left(looks: _Looks, every_s: float, woken: int) -> bool:
    """Draws what comes. True: it is to be stopped for a while."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(woken, select.POLLIN)
    _draw(looks, every_s)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if 0 in ready:
            try:
                keys = os.read(0, 64)
            except OSError:
                return False
            if not keys or b"q" in keys.lower():
                return False
        if woken in ready:
            told = set(os.read(woken, 4096))
            if told & _ENDS:
                return False
            if signal.SIGTSTP in told:
                return True
            if looks.error is not None:
                raise looks.error
            _draw(looks, every_s)


def _draw(looks: _Looks, every_s: float) -> None:
    columns, height = screen()
    # Where the cursor stands behind the last column, clearing the rest of the line takes that column's character too.
    width = columns - 1
    said = "looking ..." if looks.rows is None else summary(looks.rows)
    lines = [padded(f"stucktrace ps  {looks.at}  {said}  (every {every_s:g} s, q ends)", width).rstrip()]
    rows = looks.rows or ()
    shown, left_out = fold(rows, height - 2)
    lines += render(shown, width=width, colour=colour_wanted(), looking=True)
    if left_out:
        lines.append(padded(f"... and {summary(left_out)}", width).rstrip())
    write(HOLD + HOME + "\r\n".join(line + END_OF_LINE for line in lines[:height]) + REST + SHOW)


def fold(rows: Sequence[Row], room: int) -> tuple[list[Row], list[Row]]:
    """What is shown where there is room for so many lines, and what is left out: first what idles."""
    if len(rows) <= room:
        return list(rows), []
    wanted = sorted(range(len(rows)), key=lambda index: _rank(rows[index]))[: max(room - 1, 0)]
    kept = set(wanted)
    return [rows[index] for index in sorted(kept)], [row for index, row in enumerate(rows) if index not in kept]


def _rank(row: Row) -> int:
    if row.verdict is not None and row.verdict.verdict_class != HEALTHY:
        return 0
    if row.process.worker.kind in MASTERS or row.verdict is None:
        return 1
    return 2 if row.verdict.code != "idle" else 3
