"""`stucktrace pid`: one answer for one process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import click
from stucktrace.commands.common import (
    PROBE_HELP,
    STARTED,
    STATUS_HELP,
    complete_pid,
    json_option,
    leave,
    look_options,
    options_of,
    parse_pid,
    watchdog,
    worst,
)
from stucktrace.errors import CannotInspect, StucktraceError, UsageError
from stucktrace.output import colour_wanted, complain, terminal_width, write, write_json

if TYPE_CHECKING:
    from stucktrace.collectors.broker_view import View
    from stucktrace.inspection import Inspection
    from stucktrace.run import Options


@click.command("pid", epilog=STATUS_HELP)
@click.argument("pids", metavar="[PID]...", nargs=-1, shell_complete=complete_pid)
@json_option("One JSON object a line (schema stucktrace.report/1).")
@click.option("--dot", "as_dot", is_flag=True, help="Who waits for whom as a Graphviz digraph: pipe it to dot -Tsvg.")
@click.option("-v", "--verbose", is_flag=True, help="All threads, sockets and locks, all evidence.")
@click.option("--probe", is_flag=True, help=PROBE_HELP)
@click.option(
    "--broker",
    metavar="URL|find",
    help="Ask the broker whether it still has this worker's consumers: RabbitMQ's management API "
    "(http://user@host:15672), redis://host, rabbitmqctl, or find: what is at the other end, on this node. "
    "Or set STUCKTRACE_BROKER_VIEW, and STUCKTRACE_BROKER_PASSWORD.",
)
@look_options
def command(
    *,
    pids: tuple[str, ...],
    as_json: bool,
    as_dot: bool,
    verbose: bool,
    probe: bool,
    broker: str | None,
    native: bool,
    show_locals: bool,
    engine: str,
    sample_s: float,
    stuck_after_s: float | None,
) -> NoReturn:
    """Why does process PID not go on? Without a PID: what could be looked at on this machine.

    tini, sh and supervisord are followed down to the Python processes under them; a gunicorn or Celery master answers
    for itself and with one line per child.
    """
    if as_json and as_dot:
        raise UsageError("--json and --dot are two answers", "ask for one of them")
    if not pids:
        leave(list_candidates(as_json))
    options = replace(
        options_of(engine, native, show_locals, sample_s, stuck_after_s), probe=probe, broker=view(broker)
    )
    wanted = tuple(dict.fromkeys(parse_pid(text) for text in pids))
    leave(worst(set(look(wanted, options, "json" if as_json else "dot" if as_dot else "text", verbose))))


def view(given: str | None) -> View | None:
    """How the broker is asked, by the option or the environment; what is secret in it is forgotten."""
    text = given or os.environ.get("STUCKTRACE_BROKER_VIEW", "")
    if not text:
        return None
    from stucktrace import broker_urls

    if given:
        broker_urls.keep_secret(given)
    from stucktrace.collectors.broker_view import View

    password = os.environ.get(broker_urls.PASSWORD, "")
    way = text if text in ("find", "rabbitmqctl") else "url"
    url = broker_urls.parse(text, ("http", "https", "redis", "rediss")) if way == "url" else None
    broker_urls.forget_environment()
    return View(way, url, password)


def look(pids: tuple[int, ...], options: Options, form: str, verbose: bool) -> Iterator[int]:
    """Looks at these processes, prints each answer, and yields each one's exit status."""
    from stucktrace.inspection import Opening, follow, inspect_all

    watchdog(options).start()
    opening = Opening(options.engine)
    wanted: dict[int, None] = {}
    for pid in pids:
        try:
            found = follow(pid)
        except CannotInspect as error:
            complain(error.message, error.remedy)
            yield error.exit_status
            continue
        wanted.update(dict.fromkeys(found))
        if found != (pid,):
            complain(f"process {pid} stands above the Python to look at: {', '.join(map(str, found))}", "")
    for number, answer in enumerate(inspect_all(wanted, options, opening.opened).values()):
        if isinstance(answer, StucktraceError):
            complain(answer.message, answer.remedy)
            yield answer.exit_status
        else:
            show(answer, form, verbose, number > 0)
            yield status_of(answer)


def status_of(inspection: Inspection) -> int:
    """By the verdict's class; a master's children count too."""
    from stucktrace.diagnosis.model import EXIT_STATUS

    return worst({EXIT_STATUS[answer.diagnosis.verdict.verdict_class] for answer in (inspection, *inspection.children)})


def show(inspection: Inspection, form: str, verbose: bool, apart: bool) -> None:
    """Prints one report: as "json", "dot" or "text"."""
    from stucktrace import pod_lookup, report

    process = inspection.snapshot.process
    if process.container is not None:
        container = pod_lookup.named([process.container])(process.container)
        inspection = replace(
            inspection, snapshot=replace(inspection.snapshot, process=replace(process, container=container))
        )
    inspection.timings_ms["total"] = (time.perf_counter() - STARTED) * 1000
    built = report.build(inspection)
    if form == "json":
        write_json(built)
        return
    if form == "dot":
        from stucktrace.sinks import dot

        write(dot.render(built))
        return
    from stucktrace.sinks import text

    page = text.render(built, verbose=verbose, colour=colour_wanted(), width=terminal_width())
    write(("\n" if apart else "") + page)


def list_candidates(as_json: bool) -> int:
    """What could be looked at: every Python process, masters first."""
    from dataclasses import asdict

    from stucktrace.collectors.candidates import list_candidates as found
    from stucktrace.sinks.page import clean

    candidates = found()
    if as_json:
        for candidate in candidates:
            write_json(asdict(candidate))
        return 0
    from stucktrace.collectors import procfs

    if not candidates and procfs.hides_processes():
        complain("no Python process can be seen: /proc is mounted with hidepid", procfs.UNHIDDEN)
        return 0
    if not candidates:
        complain(
            "no Python process can be seen from here",
            "a debug container needs the target's PID namespace (hostPID, or --target)",
        )
        return 0
    for candidate in candidates:
        write(clean(str(candidate)) + "\n")
    return 0
