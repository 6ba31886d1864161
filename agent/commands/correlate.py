"""`stucktrace correlate`: RabbitMQ's log beside recorded worker timeouts."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import json_option, leave

STATUS_HELP = """\b
Exit status:
  0  at least one timeout was found in the broker's log
  2  usage error
  3  a file cannot be read, or is not what it should be
  4  nothing matched
"""


@click.command("correlate", epilog=STATUS_HELP)
@click.option(
    "--broker-log",
    "broker_logs",
    multiple=True,
    metavar="FILE",
    help="RabbitMQ's log, plain, gzip or JSON; - is stdin.",
)
@click.option("--journal", "journals", multiple=True, metavar="FILE|DIR", help="What the agent wrote with --journal.")
@click.option("--alerts", "alerts", multiple=True, metavar="FILE", help="What `stucktrace agent --json` wrote.")
@click.option(
    "--gunicorn-log",
    "gunicorn_logs",
    multiple=True,
    metavar="FILE",
    help="gunicorn's error log, plain or gzip; - is stdin.",
)
@click.option(
    "--utc-offset",
    metavar="+HH:MM",
    help="Of log times without a time zone (RabbitMQ before 3.9).  [default: they are UTC]",
)
@json_option("One JSON object (schema stucktrace.correlate/1).")
@click.argument("more", nargs=-1, metavar="[FILE]...")
def command(
    *,
    broker_logs: tuple[str, ...],
    journals: tuple[str, ...],
    alerts: tuple[str, ...],
    gunicorn_logs: tuple[str, ...],
    utc_offset: str | None,
    as_json: bool,
    more: tuple[str, ...],
) -> NoReturn:
    """Match RabbitMQ's log with recorded worker timeouts.

    Which abrupt close or missed heartbeat belongs to which worker that gunicorn ended, by connection or by time, and
    the commonest delay. Every option may be given several times; further FILEs are rotated logs of the same broker:
    stucktrace correlate --journal DIR --broker-log rabbit.log rabbit.log.*
    """
    from stucktrace import correlate
    from stucktrace.errors import UsageError

    logs = (*broker_logs, *more)
    if not broker_logs:
        raise UsageError("RabbitMQ's log is missing", "give --broker-log FILE")
    leave(correlate.run(logs, journals, alerts, gunicorn_logs, utc_offset, as_json=as_json))
