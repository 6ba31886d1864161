"""What the design promises, measured: each module here has `run() -> list[Row]`, all figures of a module from one run.

`python -m tests.bench [NAME...]` runs the modules whose name contains a NAME, or all, and prints one table.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One measured figure."""

    what: str
    figure: float
    unit: str
    beside: str = ""
    """What it stands beside, with that one's figure from the same run: "strace 68,000 ns"."""
    note: str = ""
    """The target, or how it was measured."""
