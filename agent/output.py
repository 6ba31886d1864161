"""Writing the answer: to a terminal, a pipe, a full disk or a closed stdout. Nothing here ends in a traceback."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

LONGEST_COMPLAINT = 1_000


class OutputFailed(Exception):
    """The answer could not be written. `str()` says why."""


def write(text: str) -> None:
    """Writes all of `text` to stdout. A reader that left (`| head`) ends the process quietly, as SIGPIPE does.

    Straight to the file descriptor: errors show here and not at exit, and what the encoding of a bare `LANG=C` cannot
    say is escaped.
    """
    data = text.encode(_encoding(sys.stdout), "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        raise OutputFailed(os.strerror(error.errno or 0)) from error


def complain(message: str, remedy: str) -> None:
    """One line on stderr: what is wrong, and what would help."""
    from stucktrace.sinks.text import clean

    line = f"stucktrace: {message}" + (f"; {remedy}" if remedy else "")
    data = (clean(line, LONGEST_COMPLAINT) + "\n").encode(_encoding(sys.stderr), "backslashreplace")
    with suppress(OSError):
        os.write(2, data)


def hold_standard_streams() -> None:
    """Puts /dev/null where a standard stream is closed, so that no other file can get its number and our output.

    stdout gets it read-only: writing an answer there fails, as it should.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            if os.open("/dev/null", flags) != fd:
                return


def colour_wanted() -> bool:
    """Only on a terminal that has colours, and never against NO_COLOR (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb") and os.isatty(1)


def terminal_width() -> int:
    """Columns of the terminal; 100 where there is none."""
    try:
        return max(60, min(os.get_terminal_size(1).columns, 160)) if os.isatty(1) else 100
    except OSError:
        return 100


def _encoding(stream: object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"
