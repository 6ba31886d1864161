"""When a conntrack table is under pressure. Pure: two readings of it.

Drops alone are none: packets of one flow that race each other are dropped too, in a table with room.
"""

from __future__ import annotations

from stucktrace.facts import ConntrackFact

FULL, FILLING, EASED = 0.95, 0.8, 0.7
"""Shares of the table: pressure by itself; pressure together with drops; over."""


def presses(before: ConntrackFact, after: ConntrackFact) -> bool:
    """It has no room, or next to none and flows were dropped for it since the reading before."""
    if after.fill is None:
        return False
    dropped = after.drop > before.drop or after.early_drop > before.early_drop
    return after.fill >= FULL or (after.fill >= FILLING and dropped)


def eased(before: ConntrackFact, after: ConntrackFact) -> bool:
    return after.fill is None or (after.fill < EASED and after.drop == before.drop)
