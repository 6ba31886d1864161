"""Records a process by hand: looks once, or again and again for a while, and writes a journal for `replay`."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from stucktrace import recording
from stucktrace.errors import JournalError, StucktraceError, UsageError
from stucktrace.inspection import Inspection, Opening, follow, inspect_all
from stucktrace.output import complain, write
from stucktrace.run import Options
from stucktrace.sinks import journal
from stucktrace.sinks.page import clean

LEAST_PAUSE_S = 1.0
Watchdog = Callable[[], threading.Timer]
MOST_LOOKS = 30
"""In one recording: the longer it lasts, the farther apart they are."""


def check_target(path: Path, *, force: bool) -> None:
    """UsageError when the journal would not be written in the end."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}") from None
        return
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is there, and is no plain file", "give another name")
    if not force:
        raise UsageError(f"{path} is there already", "give another name, or --force to replace it")


def run(pids: tuple[int, ...], options: Options, path: Path, for_s: float, watchdog: Watchdog) -> set[int]:
    """Looks until the time is over, the processes have ended or Ctrl-C, writes the journal and prints the last
    verdicts. The exit status of each look.

    `watchdog` makes a timer that ends the command when a look takes too long.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    end = time.monotonic() + for_s
    pause_s = max(LEAST_PAUSE_S, for_s / MOST_LOOKS)
    opening = Opening(options.engine)
    wanted = tuple(dict.fromkeys(found for pid in pids for found in follow(pid)))
    payloads = [journal.pack(recording.header(time.time(), None))]
    statuses: set[int] = set()
    last: dict[int, Inspection] = {}
    while True:
        began = time.monotonic()
        timer = watchdog()
        timer.start()
        answers = inspect_all(wanted, options, opening.opened)
        timer.cancel()
        if last and stop.is_set():
            # Ctrl-C went to the helpers of this look too.
            break
        for pid, answer in answers.items():
            if isinstance(answer, StucktraceError):
                complain(answer.message, answer.remedy)
                wanted = tuple(other for other in wanted if other != pid)
                if pid not in last:
                    statuses.add(answer.exit_status)
                continue
            answer.timings_ms["total"] = (time.monotonic() - began) * 1000
            payloads.append(journal.pack(recording.examination(recording.of_inspection(answer, options.budgets))))
            statuses |= recording.statuses(answer)
            last[pid] = answer
        if not wanted or time.monotonic() + pause_s > end or stop.wait(pause_s):
            break
    if last:
        _write(path, payloads)
    for pid, inspection in last.items():
        verdict = inspection.diagnosis.verdict
        write(clean(f"pid {pid}: {verdict.code} ({verdict.confidence}): {verdict.summary}") + "\n")
    return statuses


def _write(path: Path, payloads: list[bytes]) -> None:
    try:
        left_out = journal.write(path, payloads)
    except OSError as error:
        raise JournalError(
            f"could not write {path}: {os.strerror(error.errno or 0)}", "give a file on a disk with room"
        ) from None
    if left_out:
        complain(
            f"{path}: {left_out} looks were too large and are not in it", "record fewer processes, or for less long"
        )
