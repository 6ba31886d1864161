"""`stucktrace conntrack`: whether connection tracking loses flows on this node."""

from __future__ import annotations

import threading
from typing import NoReturn

import click
from stucktrace.commands.common import DEADLINE_S, complete_pid, give_up, leave, parse_pid

STATUS_HELP = """\b
Exit status:
  1  a table is full or drops new connections, or a connection of the processes has lost its entry
  2  usage error
  3  could not inspect: gone, or not permitted
  5  warnings: a table fills up, dropped in the past, or forgets connections before their keepalive
  0  nothing is lost
"""


@click.command("conntrack", epilog=STATUS_HELP)
@click.argument("pids", metavar="[PID]...", nargs=-1, shell_complete=complete_pid)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (schema stucktrace.conntrack/1).")
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, 600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
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
