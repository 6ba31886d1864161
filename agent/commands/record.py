"""`stucktrace record`: all that is seen of a process, into a journal."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import (
    STATUS_HELP,
    complete_pid,
    duration,
    leave,
    look_options,
    options_of,
    parse_pid,
    watchdog,
    worst,
)


@click.command("record", epilog=STATUS_HELP)
@click.argument("pids", metavar="PID...", nargs=-1, required=True, shell_complete=complete_pid)
@click.option("-o", "--output", required=True, metavar="FILE", help="The journal to write.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option(
    "--for",
    "for_s",
    callback=duration(0, 86_400),
    default="0",
    metavar="TIME",
    help="Look again and again for so long (30s, 2m); Ctrl-C ends it sooner.  [default: look once]",
)
@look_options
def command(
    *,
    pids: tuple[str, ...],
    output: str,
    force: bool,
    for_s: float,
    native: bool,
    show_locals: bool,
    engine: str,
    sample_s: float,
    stuck_after_s: float | None,
) -> NoReturn:
    """Write all that is seen of process PID to a journal, which `stucktrace replay` explains anywhere, at any time."""
    from pathlib import Path

    from stucktrace import record

    options = options_of(engine, native, show_locals, sample_s, stuck_after_s)
    wanted = tuple(dict.fromkeys(parse_pid(text) for text in pids))
    path = Path(output)
    record.check_target(path, force=force)
    leave(worst(record.run(wanted, options, path, for_s, lambda: watchdog(options))))
