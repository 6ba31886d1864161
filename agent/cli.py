"""The commands, thin: what was asked for, what is printed, the exit status.

Two things are said here and nowhere else: one line for every error (never a traceback), and nothing on the way out that
could take time: a cold `stucktrace pid` has to answer in a fraction of a second, so modules are imported where they are
used and the process ends without tearing itself down.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click
from stucktrace import __version__
from stucktrace.errors import StucktraceError, UsageError
from stucktrace.output import OutputFailed, colour_wanted, complain, prepare, screen, terminal_width, write, write_json

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from stucktrace.inspection import Inspection
    from stucktrace.ps import Table
    from stucktrace.rows import Row
    from stucktrace.run import Options

Command = Callable[..., NoReturn]
STARTED = time.perf_counter()
LARGEST_PID = 1 << 22
"""PID_MAX_LIMIT of a 64-bit kernel."""

STATUS_HELP = """\b
Exit status, the worst of all processes looked at (worst first):
  1  stuck
  2  usage error (nothing was looked at)
  3  could not inspect: gone, or not permitted
  4  inconclusive: what was needed could not be read
  5  advice only: it works, but will hurt
  0  healthy: idle, working, or waiting inside its budget
"""
DEADLINE_S = 60.0
"""Longer than any collector's own deadline: past it the kernel itself does not answer a read of /proc."""
PS_EACH_S = 0.5
"""More for each process of a table: on a node that is busy to death an inspection takes ten times what it should."""
WORST_FIRST = (2, 1, 3, 4, 5, 0)


def worst(statuses: set[int]) -> int:
    """The exit status that speaks for several."""
    return next((status for status in WORST_FIRST if status in statuses), 0)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Says why a gunicorn or Celery worker, or any other process, does not go on."""


def complete_pid(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """What could be looked at, with its command line as the shell's hint."""
    from click.shell_completion import CompletionItem
    from stucktrace.collectors.candidates import list_candidates as found
    from stucktrace.sinks.page import clean

    return [
        CompletionItem(str(candidate.pid), help=clean(f"{candidate.kind} {candidate.command}", 60))
        for candidate in found()
        if str(candidate.pid).startswith(typed)
    ]


LOOK_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--native",
        is_flag=True,
        help="Native frames of all threads; stops the target only for threads that run or cannot be unwound.",
    ),
    click.option("--locals", "show_locals", is_flag=True, help="Local variables of the frames, secrets blanked."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "core", "none"]),
        default="auto",
        show_default=True,
        help="How the kernel is asked: core is BPF, none is /proc, sock_diag and pidfd_getfd alone.",
    ),
    click.option(
        "--sample",
        "sample_s",
        type=click.FloatRange(0, 60),
        default=0.5,
        show_default=True,
        metavar="SECONDS",
        help="Length of a second look, taken only where the kernel's own ages do not decide; 0: never.",
    ),
    click.option(
        "--stuck-after",
        "stuck_after_s",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="When an open-ended request counts as stuck.  [default: the worker's own timeout, else 30]",
    ),
)
"""How a process is looked at."""


def look_options(command: Command) -> Command:
    for option in reversed(LOOK_OPTIONS):
        command = option(command)
    return command


@cli.command("pid", epilog=STATUS_HELP)
@click.argument("pids", metavar="[PID]...", nargs=-1, shell_complete=complete_pid)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (schema stucktrace.report/1).")
@click.option("--dot", "as_dot", is_flag=True, help="Who waits for whom as a Graphviz digraph: pipe it to dot -Tsvg.")
@click.option("-v", "--verbose", is_flag=True, help="All threads, sockets and locks, all evidence.")
@look_options
def pid_command(
    *,
    pids: tuple[str, ...],
    as_json: bool,
    as_dot: bool,
    verbose: bool,
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
    options = options_of(engine, native, show_locals, sample_s, stuck_after_s)
    wanted = tuple(dict.fromkeys(parse_pid(text) for text in pids))
    leave(worst(set(look(wanted, options, "json" if as_json else "dot" if as_dot else "text", verbose))))


def options_of(engine: str, native: bool, show_locals: bool, sample_s: float, stuck_after_s: float | None) -> Options:
    """What LOOK_OPTIONS said."""
    from stucktrace.diagnosis.model import Budgets
    from stucktrace.run import Options

    budgets = Budgets() if stuck_after_s is None else Budgets(stuck_after_s=stuck_after_s, stuck_after_given=True)
    return Options(engine, native, show_locals, sample_s, budgets)


def parse_pid(text: str) -> int:
    """A process id as typed."""
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{text[:40]!r} is not a process id", "give a number; `stucktrace pid` lists what could be looked at"
        )
    pid = int(text[:20])
    if not 0 < pid <= LARGEST_PID:
        raise UsageError(
            f"{text[:40]} cannot be a process id",
            f"they go from 1 to {LARGEST_PID}; `stucktrace pid` lists what is there",
        )
    return pid


def look(pids: tuple[int, ...], options: Options, form: str, verbose: bool) -> Iterator[int]:
    """Looks at these processes, prints each answer, and yields each one's exit status."""
    from stucktrace.inspection import Opening, follow, inspect_all

    watchdog(options).start()
    opening = Opening(options.engine)
    wanted: dict[int, None] = {}
    for pid in pids:
        found = follow(pid)
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


def watchdog(options: Options) -> threading.Timer:
    """Ends the command when a look takes longer than it ever should."""
    timer = threading.Timer(DEADLINE_S + 2 * options.sample_s, give_up)
    timer.daemon = True
    return timer


def give_up() -> None:
    """Ends the process: a read of /proc can hang for ever, for example behind the lock of the target's memory map."""
    complain("no answer from the kernel in time", "it may be stuck in the kernel itself; see its wchan and dmesg")
    os._exit(3)


def status_of(inspection: Inspection) -> int:
    """By the verdict's class; a master's children count too."""
    from stucktrace.diagnosis.model import EXIT_STATUS

    return worst({EXIT_STATUS[answer.diagnosis.verdict.verdict_class] for answer in (inspection, *inspection.children)})


def show(inspection: Inspection, form: str, verbose: bool, apart: bool) -> None:
    """Prints one report: as "json", "dot" or "text"."""
    from stucktrace import report

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
    if not candidates:
        complain(
            "no Python process can be seen from here",
            "a debug container needs the target's PID namespace (hostPID, or --target)",
        )
        return 0
    for candidate in candidates:
        write(clean(str(candidate)) + "\n")
    return 0


PS_STATUS_HELP = """\b
Exit status:
  0  the table was made; what is wrong with a process stands in it
  2  usage error
  3  nothing could be seen: not permitted
"""


@cli.command("ps", epilog=PS_STATUS_HELP)
@click.option("--match", metavar="REGEX", help="Other Python processes too, whose command line matches.")
@click.option("--all", "everything", is_flag=True, help="All Python processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a process and line (schema stucktrace.ps/1).")
@click.option("--no-verdict", is_flag=True, help="Only a glance: what the kernel shows at once.")
@click.option(
    "--watch",
    "watch_s",
    type=click.FloatRange(0.2, 3600),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Look again every SECONDS (default 2); q or Ctrl-C ends it.",
)
@click.option(
    "--stuck-after",
    "stuck_after_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="When an open-ended request counts as stuck, as for pid.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "core", "none"]),
    default="auto",
    show_default=True,
    help="How the kernel is asked, as for pid.",
)
def ps_command(
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
    from stucktrace.collectors import procfs

    if table.blind or (not rows and procfs.hides_processes()):
        complain(*table.blind or ("/proc is mounted with hidepid", "run as root, or in hidepid's gid= group"))
        return 3
    if not rows:
        complain(
            "no gunicorn or Celery process can be seen from here",
            "--match REGEX or --all shows other Python processes; a debug container needs the target's PID namespace "
            "(hostPID, or --target)",
        )
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


@cli.command("agent")
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
    type=click.Choice(["auto", "core", "none"]),
    help="How the kernel is asked, as for pid.  [default: auto]",
)
@click.option("--json", is_flag=True, default=None, help="JSON lines (schema stucktrace.alert/1), on a terminal too.")
@click.option("--sentry-dsn", metavar="DSN", help="Send alerts to Sentry. Others see options: a file is better.")
@click.option("--metrics", metavar="ADDRESS", help="Serve /metrics and /healthz, for example on 127.0.0.1:9464.")
@click.option("--otlp-endpoint", metavar="URL", help="Send alerts and metrics to an OpenTelemetry collector (HTTP).")
@click.option("--spool", metavar="DIR", help="Keep what cannot be delivered now, also over a restart.")
@click.option("--journal", metavar="DIR", help="Keep the facts around each alert, for replay.")
def agent_command(*, config: str | None, check_config: bool, **options: Any) -> NoReturn:
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


@cli.command("record", epilog=STATUS_HELP)
@click.argument("pids", metavar="PID...", nargs=-1, required=True, shell_complete=complete_pid)
@click.option("-o", "--output", required=True, metavar="FILE", help="The journal to write.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    metavar="SECONDS",
    help="Look again and again for so long; Ctrl-C ends it sooner.  [default: look once]",
)
@look_options
def record_command(
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


@cli.command("replay", epilog=STATUS_HELP)
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (schema stucktrace.report/1).")
@click.option("-v", "--verbose", is_flag=True, help="Every examination in full.")
def replay_command(*, file: str, as_json: bool, verbose: bool) -> NoReturn:
    """Explain what stands in a journal, as `stucktrace pid` would have explained the live process."""
    from pathlib import Path

    from stucktrace import replay

    leave(worst(replay.run(Path(file), as_json=as_json, verbose=verbose)))


@cli.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor_command(as_json: bool) -> NoReturn:
    """What can be seen from here, and which capability, mount or setting would show more.

    Each ability is tested by using it, on a child process of its own. Exit status 0: all is there; 1: it is not.
    """
    from stucktrace import doctor

    leave(doctor.run(as_json))


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> NoReturn:
    """Print the completion script for SHELL; for bash: eval "$(stucktrace completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    write(found(cli, {}, "stucktrace", "_STUCKTRACE_COMPLETE").source() + "\n")
    leave(0)


def leave(status: int) -> NoReturn:
    """Ends the process at once: nothing is left to write, and the kernel closes what is open faster than we could."""
    try:
        sys.stdout.flush()
    except OSError as error:
        complain(f"could not write the answer: {os.strerror(error.errno or 0)}", "")
        status = 3
    os._exit(status)


def main() -> NoReturn:
    """The entry point: every way out of the command ends here."""
    prepare()
    try:
        cli(prog_name="stucktrace", standalone_mode=False)
    except click.exceptions.Exit as done:
        leave(done.exit_code)
    except click.ClickException as error:
        hint = f"try `{error.ctx.command_path} --help`" if isinstance(error, click.UsageError) and error.ctx else ""
        complain(error.format_message().rstrip("."), hint)
        leave(2)
    except StucktraceError as error:
        complain(error.message, error.remedy)
        leave(error.exit_status)
    except OutputFailed as error:
        complain(f"could not write the answer: {error}", "")
        os._exit(3)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            # click's own words (--help, --version) go through sys.stdout.
            complain(f"could not write the answer: {os.strerror(error.errno or 0)}", "")
            os._exit(3)
        if os.environ.get("STUCKTRACE_DEBUG"):
            import traceback

            traceback.print_exc()
        complain(
            f"internal error, {type(error).__name__}: {error}", "report this; STUCKTRACE_DEBUG=1 shows the traceback"
        )
        leave(3)
    leave(0)
