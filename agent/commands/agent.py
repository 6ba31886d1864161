"""`stucktrace agent`: the node daemon."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import click
from stucktrace.commands.common import leave
from stucktrace.output import complain, write


@click.command("agent")
@click.option(
    "--config",
    type=click.Path(),
    envvar="STUCKTRACE_CONFIG",
    show_envvar=True,
    metavar="PATH",
    help="A TOML file.  [default: /etc/stucktrace/agent.toml if it is there]",
)
@click.option("--check-config", is_flag=True, help="Print what is in force and where it was set, and end.")
@click.option("--match", metavar="REGEX", help="Watch other Python processes too, whose command line matches.")
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    help="How often all processes are glanced at; without BPF at least 2.  [default: 0.25]",
)
@click.option(
    "--stuck-after",
    "stuck_after_s",
    metavar="SECONDS",
    help="When an open-ended request counts as stuck.  [default: a share of Celery's soft time limit, else 30]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "core", "bcc", "none"]),
    help="How the kernel is asked, as for pid.  [default: auto]",
)
@click.option("--json", is_flag=True, default=None, help="JSON lines (schema stucktrace.alert/1), on a terminal too.")
@click.option("--sentry-dsn", metavar="DSN", help="Send alerts to Sentry. Others see options: a file is better.")
@click.option("--metrics", metavar="ADDRESS", help="Serve /metrics and /healthz, for example on 127.0.0.1:9464.")
@click.option("--otlp-endpoint", metavar="URL", help="Send alerts and metrics to an OpenTelemetry collector (HTTP).")
@click.option("--spool", metavar="DIR", help="Keep what cannot be delivered now, also over a restart.")
@click.option("--journal", metavar="DIR", help="Keep the facts around each alert, for replay.")
def command(*, config: str | None, check_config: bool, **options: Any) -> NoReturn:
    """Watch every gunicorn and Celery process of this node, and say it as it happens.

    A process that gets stuck opens an alert, with its stack and the proof, before gunicorn's timeout kills it. The
    alert is updated while it lasts and resolved when it is over. Ends with status 0 on SIGTERM.

    Options win over STUCKTRACE_ variables, and those over the configuration file, which SIGHUP reads again.
    """
    from pathlib import Path

    from stucktrace import settings
    from stucktrace.errors import InvalidSettings

    def read() -> settings.Settings:
        return settings.load(Path(config) if config else settings.default_file(), os.environ, options)

    try:
        found = read()
    except InvalidSettings as error:
        for problem in error.problems:
            complain(problem, "")
        leave(2)
    if check_config:
        write(settings.describe(found))
        leave(0)
    from stucktrace.node.loop import Agent

    Agent(found, read).run()
    leave(0)
