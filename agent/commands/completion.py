"""`stucktrace completion`: for the shell."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import leave
from stucktrace.errors import UsageError
from stucktrace.output import write


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> NoReturn:
    """Print the completion script for SHELL; for bash: eval "$(stucktrace completion bash)"."""
    from click.shell_completion import get_completion_class
    from stucktrace.cli import cli

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    write(found(cli, {}, "stucktrace", "_STUCKTRACE_COMPLETE").source() + "\n")
    leave(0)
