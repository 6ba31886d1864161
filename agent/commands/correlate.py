"""`stucktrace correlate`."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.errors import UsageError


@click.command("correlate")
def command() -> NoReturn:
    """Not built yet."""
    raise UsageError("not built yet")
