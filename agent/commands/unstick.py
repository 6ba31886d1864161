"""`stucktrace unstick`: ends the dead connection that a process hangs on."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import click
from stucktrace import __version__
from stucktrace.commands.common import (
    PROBE_HELP,
    complete_pid,
    engine_option,
    json_option,
    leave,
    options_of,
    parse_pid,
    watchdog,
)
from stucktrace.errors import CannotInspect, Refused
from stucktrace.output import write, write_json

if TYPE_CHECKING:
    from stucktrace.diagnosis.model import Finding
    from stucktrace.unstick import Plan
    from stucktrace.unstick_watch import Outcome

EPILOG = """\b
Exit status:
  0  done, and the process went on (with --dry-run: it would be done)
  1  done, but nothing changed within 10 s, or the process ended
  2  usage error
  3  refused, or could not inspect: nothing was done; one line says why
"""


@click.command("unstick", epilog=EPILOG)
@click.argument("pid", shell_complete=complete_pid)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask on.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and do nothing more than look (with --probe: ask)."
)
@json_option("One JSON object (schema stucktrace.unstick/1).")
@click.option("--probe", is_flag=True, help=PROBE_HELP)
@engine_option
def command(*, pid: str, yes: bool, dry_run: bool, as_json: bool, probe: bool, engine: str) -> NoReturn:
    """End the dead connection that process PID hangs on, so that its own retry takes over: the process lives on.

    Only a connection whose verdict is half-open and proven, and that no other process holds, is ended; all else is
    refused. Any TCP connection will do, not AMQP alone. What was sent on it and not acknowledged may have arrived: a
    publish that is tried again can then be there twice.
    """
    leave(run(parse_pid(pid), yes=yes, dry_run=dry_run, as_json=as_json, probe=probe, engine=engine))


def run(pid: int, *, yes: bool, dry_run: bool, as_json: bool, probe: bool, engine: str) -> int:
    """The exit status."""
    from stucktrace.run import Options
    from stucktrace.unstick import Unsticker

    began = time.time()
    options = replace(options_of(engine, False, False, Options.sample_s, None), probe=probe)
    guard = watchdog(options)
    guard.start()
    plan: Plan | None = None
    try:
        unsticker = Unsticker(pid, options)
        plan = unsticker.plan()
        if plan.ended:
            return _tell(began, plan, unsticker.watch(plan), unsticker.verdict(), as_json, action="ended-by-probe")
        if not as_json:
            write("".join(f"{line}\n" for line in _clean(plan.lines())))
        if dry_run:
            if as_json:
                write_json(_object(began, plan, "dry-run"))
            return 0
        guard.cancel()
        if not yes:
            _ask(plan if as_json else None)
        guard = watchdog(options)
        guard.start()
        action = unsticker.end(plan)
        return _tell(began, plan, unsticker.watch(plan), unsticker.verdict(), as_json, action=action)
    except (Refused, CannotInspect) as error:
        if as_json:
            refused = _object(began, plan, "refused", pid=pid)
            write_json({**refused, "because": error.message, "remedy": error.remedy or None})
        raise
    finally:
        guard.cancel()


def _ask(untold: Plan | None) -> None:
    """Raises Refused unless a person at a terminal says yes. `untold`: what it is about, where stdout is for JSON."""
    if not (os.isatty(0) and os.isatty(2)):
        raise Refused("there is no terminal to ask on", "nothing was done; --yes does it without asking")
    sys.stderr.write("".join(f"{line}\n" for line in _clean(untold.lines() if untold else ())))
    sys.stderr.write("End this connection? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("not agreed to", "nothing was done")


def _tell(began: float, plan: Plan, outcome: Outcome, verdict: Finding | None, as_json: bool, *, action: str) -> int:
    if as_json:
        write_json(_object(began, plan, action, outcome=outcome, verdict=verdict))
    else:
        done = "ended by the reset that the probe brought" if action == "ended-by-probe" else "ended"
        lines = [f"{done}; {outcome.text}"]
        if verdict is not None:
            lines.append(f"now: {verdict.code}: {verdict.summary}")
        write("".join(f"{line}\n" for line in _clean(lines)))
    return 0 if outcome.good else 1


def _object(
    began: float,
    plan: Plan | None,
    action: str,
    *,
    pid: int | None = None,
    outcome: Outcome | None = None,
    verdict: Finding | None = None,
) -> dict[str, Any]:
    connection = plan.connection if plan else None
    return {
        "schema": "stucktrace.unstick/1",
        "time": round(began, 3),
        "tool": {"version": __version__},
        "pid": plan.process.pid if plan else pid,
        "start_time": plan.process.start_time if plan else None,
        "action": action,
        "because": plan.finding.summary if plan else None,
        "remedy": None,
        "connection": {
            "fds": list(connection.fds),
            "inode": connection.inode,
            "local": connection.local,
            "remote": connection.remote,
            "unacked_bytes": connection.send_bytes,
        }
        if connection
        else None,
        "says": list(plan.lines()) if plan and not plan.ended else [],
        "outcome": {
            "what": outcome.what,
            "after_s": round(outcome.after_s, 3),
            "text": outcome.text,
            "remote": outcome.remote or None,
        }
        if outcome
        else None,
        "verdict_after": {"code": verdict.code, "confidence": verdict.confidence, "summary": verdict.summary}
        if verdict
        else None,
    }


def _clean(lines: tuple[str, ...] | list[str]) -> list[str]:
    from stucktrace.sinks.page import clean

    return [clean(line) for line in lines]
