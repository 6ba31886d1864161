"""`stucktrace probe-broker`."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.errors import UsageError


@click.command("probe-broker")
def command() -> NoReturn:
    """Not built yet."""
    raise UsageError("not built yet")
