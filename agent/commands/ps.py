"""`stucktrace ps`: the workers of this node, a line each."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, NoReturn

import click
from stucktrace.commands.common import DEADLINE_S, Number, engine_option, give_up, json_option, leave, options_of
from stucktrace.errors import UsageError
from stucktrace.output import colour_wanted, complain, screen, write, write_json

if TYPE_CHECKING:
    from stucktrace.ps import Table
    from stucktrace.rows import Row


PS_EACH_S = 0.5
"""More for each process of a table: on a node that is busy to death an inspection takes ten times what it should."""


PS_STATUS_HELP = """\b
Exit status:
  0  the table was made; what is wrong with a process stands in it
  2  usage error
  3  nothing could be seen: not permitted
"""


@click.command("ps", epilog=PS_STATUS_HELP)
@click.option("--match", metavar="REGEX", help="Other Python processes too, whose command line matches.")
@click.option("--all", "everything", is_flag=True, help="All Python processes.")
@json_option("One JSON object a process and line (schema stucktrace.ps/1).")
@click.option("--no-verdict", is_flag=True, help="Only a glance: what the kernel shows at once.")
@click.option(
    "--watch",
    "watch_s",
    type=Number(0.2, 3600),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Look again every SECONDS (default 2); q or Ctrl-C ends it.",
)
@click.option(
    "--stuck-after",
    "stuck_after_s",
    type=Number(0, min_open=True),
    metavar="SECONDS",
    help="When an open-ended request counts as stuck, as for pid.",
)
@engine_option
def command(
    *,
    match: str | None,
    everything: bool,
    as_json: bool,
    no_verdict: bool,
    watch_s: float | None,
    stuck_after_s: float | None,
    engine: str,
) -> NoReturn:
    """The workers of this node: what each one is in and since when, its work in hand, and a verdict.

    gunicorn's and Celery's masters come first, each with its workers beneath it. IN and FOR are about the main thread;
    of a stuck process about the thread that is stuck.
    """
    from stucktrace.inspection import Opening
    from stucktrace.ps import Selection, Table
    from stucktrace.run import Options

    selection = Selection(None if match is None else parse_pattern(match), everything)
    options = options_of(engine, False, False, Options.sample_s, stuck_after_s)
    table = Table(selection, options, Opening(engine).opened, verdicts=not no_verdict)
    if watch_s is None:
        leave(show_table(table, as_json))
    if as_json or not (os.isatty(0) and os.isatty(1)):
        again(table, watch_s, as_json)
    from stucktrace import watch

    leave(watch.on_terminal(table, watch_s))


def show_table(table: Table, as_json: bool) -> int:
    """Prints the table once, complete."""
    from stucktrace.sinks.table import as_json as row_as_json
    from stucktrace.sinks.table import render, summary

    began = time.time()
    rows: tuple[Row, ...] = ()
    guard = watched_for(DEADLINE_S)
    for rows in table.look():
        guard.cancel()
        guard = watched_for(DEADLINE_S + PS_EACH_S * len(rows))
    if as_json:
        for row in rows:
            write_json(row_as_json(row, began))
    elif rows:
        width = screen()[0] if os.isatty(1) else None
        write("\n".join(render(rows, width=width, colour=colour_wanted())) + "\n")
        if width is not None:
            write(f"\n{summary(rows)}\n")
    guard.cancel()
    return complain_of(table, rows)


def watched_for(seconds: float) -> threading.Timer:
    """Ends the process after so long, unless it is cancelled."""
    watchdog = threading.Timer(seconds, give_up)
    watchdog.daemon = True
    watchdog.start()
    return watchdog


def complain_of(table: Table, rows: Collection[Row]) -> int:
    """One line where nothing is shown or too little could be seen, and the exit status."""
    from stucktrace.collectors import permission, procfs

    if table.blind or (not rows and procfs.hides_processes()):
        complain(*table.blind or ("/proc is mounted with hidepid", procfs.UNHIDDEN))
        return 3
    if not rows:
        complain(
            "no gunicorn or Celery process can be seen from here",
            "--match REGEX or --all shows other Python processes; a debug container needs the target's PID namespace "
            "(hostPID, or --target)",
        )
    short = permission.lacking("SYS_PTRACE", "DAC_READ_SEARCH")
    if short and any(row.verdict is not None and row.verdict.code == "inconclusive" for row in rows):
        complain("some of them could not be read", permission.remedy(*short, otherwise="run as their user"))
    return 0


def again(table: Table, seconds: float, as_json: bool) -> NoReturn:
    """A table each time, until somebody ends it."""
    while True:
        began = time.monotonic()
        show_table(table, as_json)
        if not as_json:
            write("\n")
        time.sleep(max(0.0, began + seconds - time.monotonic()))


def parse_pattern(text: str) -> re.Pattern[str]:
    """A regular expression as typed."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--match: not a regular expression: {error}", "escape what is meant literally") from None
