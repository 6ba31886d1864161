"""`stucktrace probe-broker`: how fast a broker confirms."""

from __future__ import annotations

import os
from typing import NoReturn

import click
from stucktrace.broker_urls import URL, forget_environment, keep_secret, parse
from stucktrace.commands.common import Number, json_option, leave
from stucktrace.errors import UsageError
from stucktrace.output import colour_wanted, complain, sockets_may_break, write, write_json

EPILOG = """\b
Verdict by the p99 of persistent messages (Redis: of PING):
  healthy         below 20 ms
  slow            below 100 ms: a slow disk, or a loaded broker
  degraded        below 1 s: explains workers that stall in publishes
  broken          1 s and more, or no answer for 10 s
  broker-blocked  the broker has an alarm and takes no messages

\b
Exit status:
  0  healthy
  5  slow
  1  degraded, broken or broker-blocked, or p99 over --p99-threshold-ms
  2  usage error
  3  could not connect: name, network, TLS, login, virtual host, permission, or no such broker

\b
Environment:
  STUCKTRACE_BROKER_URL       instead of URL: others see a command line in ps for the moment until it is overwritten
  STUCKTRACE_BROKER_PASSWORD  where the URL has none
"""
MOST_SAMPLES = 100_000


@click.command("probe-broker", epilog=EPILOG)
@click.argument("url", required=False)
@click.option("--samples", type=click.IntRange(1, MOST_SAMPLES), default=200, show_default=True, help="Round trips.")
@click.option(
    "--p99-threshold-ms",
    "threshold_ms",
    type=Number(0, min_open=True),
    metavar="MS",
    help="Exit with status 1 where the p99 is above it.",
)
@click.option(
    "--interval",
    "interval_s",
    type=Number(0, 60),
    default=0.0,
    metavar="SECONDS",
    help="Pause between two round trips.  [default: none]",
)
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Trust these certificates (PEM)."
)
@click.option("--insecure", is_flag=True, help="Do not check the broker's certificate.")
@json_option("One JSON object (schema stucktrace.probe-broker/1).")
def command(
    *,
    url: str | None,
    samples: int,
    threshold_ms: float | None,
    interval_s: float,
    ca: str | None,
    insecure: bool,
    as_json: bool,
) -> NoReturn:
    """How fast does the broker at URL confirm? amqp://, amqps://, redis:// or rediss://.

    Publishes messages one by one, waits for each confirm, and gives the percentiles: persistent ones into a queue that
    goes with its connection, and transient ones to no queue at all, for comparison. Redis: PING.
    Nothing is left on the broker. Each step of the connection is timed too, and given 10 s. Ctrl-C ends it with what
    was measured until then.
    """
    text = url or os.environ.get(URL, "")
    if not text:
        raise UsageError("no broker is named", f"give its URL, or set {URL}")
    if url:
        keep_secret(url)
    broker = parse(text, ("amqp", "amqps", "redis", "rediss"))
    forget_environment()
    from stucktrace import probe_broker, probe_show
    from stucktrace.probe_connect import Tls

    with sockets_may_break():
        outcome = probe_broker.run(probe_broker.Wanted(broker, Tls(ca, insecure), samples, interval_s, threshold_ms))
    if as_json:
        write_json(probe_show.as_json(outcome))
    if outcome.code == probe_broker.UNREACHED:
        complain(outcome.summary, outcome.remedy)
    elif not as_json:
        write(probe_show.as_text(outcome, colour_wanted()))
    leave(outcome.exit_status)
