"""What several commands share: options, process ids, the watchdog, the way out."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click
from stucktrace.errors import UsageError
from stucktrace.output import complain

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
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


PROBE_HELP = (
    "Ask the peer's TCP whether the connection in question lives: up to three segments like a keepalive's, in 3 s. "
    "Where the peer has forgotten it, its reset reaches the process too and ends its wait (ECONNRESET)."
)

DEADLINE_S = 60.0
"""Longer than any collector's own deadline: past it the kernel itself does not answer a read of /proc."""


BROKER_S = 240.0
"""More where a broker is asked: each of its answers has a deadline of its own."""


WORST_FIRST = (2, 1, 3, 4, 5, 0)


def worst(statuses: set[int]) -> int:
    """The exit status that speaks for several."""
    return next((status for status in WORST_FIRST if status in statuses), 0)


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


def duration(least_s: float, most_s: float) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """For an option that takes a length of time as typed ("30s", "2m", "1.5"): its callback, which gives seconds."""

    def convert(_context: click.Context, _parameter: click.Parameter, typed: str | None) -> float | None:
        from stucktrace.setting_values import seconds

        if typed is None:
            return None
        try:
            return seconds(least_s, most_s)(typed)
        except ValueError:
            raise click.BadParameter(
                f"{typed[:40]!r} is no length of time from {least_s:g} s to {most_s:g} s; write it like 30s, 2m or 1h"
            ) from None

    return convert


def json_option(what: str) -> Callable[[Command], Command]:
    """`what` is printed, and by which schema."""
    return click.option("--json", "as_json", is_flag=True, help=what)


engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "core", "bcc", "none"]),
    default="auto",
    show_default=True,
    help="How the kernel is asked: core and bcc (compiled here) are BPF, none is /proc, sock_diag and pidfd_getfd.",
)


class Number(click.FloatRange):
    """A range without nan, which is in every range, and inf: neither can be written as JSON."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


LOOK_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--native",
        is_flag=True,
        help="Native frames of all threads; stops the target only for threads that run or cannot be unwound.",
    ),
    click.option("--locals", "show_locals", is_flag=True, help="Local variables of the frames, secrets blanked."),
    engine_option,
    click.option(
        "--sample",
        "sample_s",
        type=Number(0, 60),
        default=0.5,
        show_default=True,
        metavar="SECONDS",
        help="Length of a second look, taken only where the kernel's own ages do not decide; 0: never.",
    ),
    click.option(
        "--stuck-after",
        "stuck_after_s",
        type=Number(0, min_open=True),
        metavar="SECONDS",
        help="When an open-ended request counts as stuck.  [default: the worker's own timeout, else 30]",
    ),
)
"""How a process is looked at."""


def look_options(command: Command) -> Command:
    for option in reversed(LOOK_OPTIONS):
        command = option(command)
    return command


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


def watchdog(options: Options) -> threading.Timer:
    """Ends the command when a look takes longer than it ever should."""
    asks_s = BROKER_S if options.broker is not None else 0.0
    timer = threading.Timer(DEADLINE_S + 2 * options.sample_s + asks_s, give_up)
    timer.daemon = True
    return timer


def give_up() -> None:
    """Ends the process: a read of /proc can hang for ever, for example behind the lock of the target's memory map."""
    complain("no answer from the kernel in time", "it may be stuck in the kernel itself; see its wchan and dmesg")
    os._exit(3)


def leave(status: int) -> NoReturn:
    """Ends the process at once: nothing is left to write, and the kernel closes what is open faster than we could."""
    try:
        sys.stdout.flush()
    except OSError as error:
        complain(f"could not write the answer: {os.strerror(error.errno or 0)}", "")
        status = 3
    os._exit(status)
