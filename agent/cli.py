"""The command line: which commands there are, one line for every error (never a traceback), the exit status.

A cold `stucktrace pid` has to answer in a fraction of a second: a command is imported when it is called, and the
process ends without tearing itself down.
"""

from __future__ import annotations

import importlib
import os
from typing import NoReturn

import click
from stucktrace import __version__
from stucktrace.commands.common import leave
from stucktrace.errors import StucktraceError
from stucktrace.output import OutputFailed, complain, prepare

COMMANDS = {
    "pid": "Why does process PID not go on?",
    "ps": "The workers of this node: what each one is in and since when.",
    "agent": "Watch every gunicorn and Celery process of this node.",
    "amqp": "What passes on the AMQP connections of process PID.",
    "audit": "What is really in force in process PID, and will hurt.",
    "probe-broker": "How fast the broker at URL confirms.",
    "conntrack": "Does connection tracking lose flows on this node?",
    "unstick": "End the dead connection that process PID hangs on.",
    "correlate": "Match RabbitMQ's log with recorded worker timeouts.",
    "record": "Write all that is seen of process PID to a journal.",
    "replay": "Explain what stands in a journal.",
    "explain": "What a verdict means, what proves it, and what to do.",
    "doctor": "What can be seen from here, and what would show more.",
    "completion": "Print the completion script for a shell.",
}
"""Each in stucktrace.commands, under its own name; the line is for `--help`."""


class Commands(click.Group):
    """The commands in the order of the table, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"stucktrace.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Says why a gunicorn or Celery worker, or any other process, does not go on."""


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
