"""`stucktrace doctor`: what can be seen from here."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import leave


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> NoReturn:
    """What can be seen from here, and which capability, mount or setting would show more.

    Each ability is tested by using it, on a child process of its own. Exit status 0: all is there; 1: it is not.
    """
    from stucktrace import doctor

    leave(doctor.run(as_json))
