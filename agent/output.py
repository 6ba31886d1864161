"""Writing the answer: to a terminal, a pipe, a full disk or a closed stdout. Nothing here ends in a traceback."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LONGEST_COMPLAINT = 1_000
_SECRET = re.compile(r"(://[^\s:/@]*|\b[\w.-]+(?=:(?!//))):\S*@")
"""A password in a URL: what was typed in the wrong place is repeated in a complaint."""


class OutputFailed(Exception):
    """The answer could not be written. `str()` says why."""


def write(text: str) -> None:
    """Writes all of `text` to stdout, straight to the file descriptor: errors show here and not at exit.

    What the encoding of a bare `LANG=C` cannot say is escaped.
    """
    data = text.encode(_encoding(sys.stdout), "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        raise OutputFailed(os.strerror(error.errno or 0)) from error


def write_json(data: Any) -> None:
    """One JSON object on a line."""
    import json

    write(json.dumps(data, ensure_ascii=True, separators=(", ", ": ")) + "\n")


def complain(message: str, remedy: str) -> None:
    """One line on stderr: what is wrong, and what would help."""
    from stucktrace.sinks.page import clean

    line = _SECRET.sub(r"\1:***@", f"stucktrace: {message}" + (f"; {remedy}" if remedy else ""))
    data = (clean(line, LONGEST_COMPLAINT) + "\n").encode(_encoding(sys.stderr), "backslashreplace")
    with suppress(OSError):
        os.write(2, data)


def prepare() -> None:
    """Makes the standard streams and the signals those of a plain Unix command.

    A reader that left (`| head`) and Ctrl-C end the process at once and without a word. A closed standard stream gets
    /dev/null, so that no other file can get its number and our output; stdout gets it read-only: writing an answer
    there fails, as it should.
    """
    # What Python would say of a target's sources or of a user's pattern.
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", flags)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


@contextmanager
def sockets_may_break() -> Iterator[None]:
    """Sending to a peer that has reset the connection is an error meanwhile, and not the end of us (SIGPIPE)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)


def colour_wanted() -> bool:
    """Only on a terminal that has colours, and never against NO_COLOR (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb") and os.isatty(1)


def terminal_width() -> int:
    """Columns of the terminal; 100 where there is none."""
    try:
        return max(60, min(os.get_terminal_size(1).columns, 160)) if os.isatty(1) else 100
    except OSError:
        return 100


def screen() -> tuple[int, int]:
    """Columns and lines of the terminal; 80 and 24 where it does not say."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24


def _encoding(stream: object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"
