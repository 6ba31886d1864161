"""`stucktrace conntrack`: whether connection tracking loses flows on this node."""

from __future__ import annotations

import threading
from typing import NoReturn

import click
from stucktrace.commands.common import DEADLINE_S, complete_pid, duration, give_up, json_option, leave, parse_pid

STATUS_HELP = """\b
Exit status:
  0  nothing is lost
  1  a table is full or drops new connections, or a connection of the processes has lost its entry
  2  usage error
  3  could not inspect: gone, or not permitted
  5  warnings: a table fills up, dropped in the past, or forgets connections before their keepalive
"""


@click.command("conntrack", epilog=STATUS_HELP)
@click.argument("pids", metavar="[PID]...", nargs=-1, shell_complete=complete_pid)
@json_option("One JSON object (schema stucktrace.conntrack/1).")
@click.option(
    "--for",
    "for_s",
    callback=duration(0, 600),
    default="1s",
    show_default=True,
    metavar="TIME",
    help="Between the two readings of every counter: what grows is lost now.",
)
def command(pids: tuple[str, ...], as_json: bool, for_s: float) -> NoReturn:
    """Does connection tracking lose flows on this node?

    The tables of the node and of the processes' network namespaces, the connections of the processes with their
    entries, and the tables' timeouts against the keepalive in force. Without a PID: of every gunicorn and Celery
    process. No setting is changed.
    """
    from stucktrace import conntrack

    wanted = tuple(dict.fromkeys(parse_pid(text) for text in pids))
    guard = threading.Timer(DEADLINE_S + for_s, give_up)
    guard.daemon = True
    guard.start()
    leave(conntrack.run(wanted, for_s, as_json=as_json))
