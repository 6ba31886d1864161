"""`stucktrace audit`: what is really in force in one process."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import complete_pid, engine_option, json_option, leave, parse_pid, watchdog, worst
from stucktrace.output import colour_wanted, complain, terminal_width, write, write_json

STATUS_HELP = """\b
Exit status:
  0  nothing that would hurt
  1  errors
  2  usage error
  3  could not inspect: gone, or not permitted
  5  warnings only
"""
EXIT_STATUS = {"ok": 0, "warn": 5, "error": 1}


@click.command("audit", epilog=STATUS_HELP)
@click.argument("pid", metavar="PID", shell_complete=complete_pid)
@json_option("One JSON object a line (schema stucktrace.audit/1).")
@click.option("-v", "--verbose", is_flag=True, help="Every setting, those at their default too.")
@engine_option
def command(*, pid: str, as_json: bool, verbose: bool, engine: str) -> NoReturn:
    """What is really in force in process PID: connections, gunicorn, Celery, and what of it will hurt.

    The options of live sockets, the settings in the memory of the running process and the sources that they come from.
    Nothing is stopped or run in it. A gunicorn or Celery master answers for itself and its workers.
    """
    from stucktrace import audit
    from stucktrace.inspection import Opening, follow
    from stucktrace.run import Options
    from stucktrace.sinks import audit as sink

    options = Options(engine)
    watchdog(options).start()
    opening = Opening(engine)
    wanted = parse_pid(pid)
    found = follow(wanted)
    if found != (wanted,):
        complain(f"process {wanted} stands above the Python to look at: {', '.join(map(str, found))}", "")
    statuses = set()
    for number, each in enumerate(found):
        answer = audit.audit(each, options, opening.opened)
        statuses.add(EXIT_STATUS[answer.status])
        if as_json:
            write_json(sink.as_json(answer))
        else:
            text = sink.render(answer, verbose=verbose, colour=colour_wanted(), width=terminal_width())
            write(("\n" if number else "") + text)
    leave(worst(statuses))
