"""`stucktrace conntrack`."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.errors import UsageError


@click.command("conntrack")
def command() -> NoReturn:
    """Not built yet."""
    raise UsageError("not built yet")
