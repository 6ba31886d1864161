"""`stucktrace replay`: a journal explained."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import STATUS_HELP, leave, worst


@click.command("replay", epilog=STATUS_HELP)
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (schema stucktrace.report/1).")
@click.option("-v", "--verbose", is_flag=True, help="Every examination in full.")
def command(*, file: str, as_json: bool, verbose: bool) -> NoReturn:
    """Explain what stands in a journal, as `stucktrace pid` would have explained the live process."""
    from pathlib import Path

    from stucktrace import replay

    leave(worst(replay.run(Path(file), as_json=as_json, verbose=verbose)))
