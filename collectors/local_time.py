"""How long ago a naive local time of the target's was.

Source: glibc's or musl's `timezone` (standard time's seconds west of UTC) and `daylight` in the target's memory; where
its zone has daylight saving, the zone's own file as TZ or /etc/localtime name it in the target's root. Where the file
does not fit what the memory says, the age is not known. A clock that was set since makes it wrong: callers check it
against what else they know.
"""

from __future__ import annotations

import io
import os
import re
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stucktrace.collectors import interpreter, memory, target_files
from stucktrace.collectors.regions import Regions

_LIBC = re.compile(r"/(?:libc\.so\.6|libc-[\d.]+\.so|ld-musl-[^/]*|libc\.musl-[^/]*)$")
_ZONES = "/usr/share/zoneinfo/"


def ages_s(pid: int, mapped: Regions, moment: datetime) -> list[float]:
    """Most likely one; two in the hour that a clock was set back over, [] where the zone cannot be read."""
    now = time.time()
    zone = _zone(pid, mapped)
    if zone is None:
        return []
    west_s, has_daylight = zone
    if not has_daylight:
        return [now - moment.replace(tzinfo=UTC).timestamp() - west_s]
    return [now - began for began in _in_zone(pid, moment, west_s)]


def _zone(pid: int, mapped: Regions) -> tuple[int, bool] | None:
    """(seconds that its standard time lies behind UTC, it has daylight saving)."""
    paths = dict.fromkeys(region.path for region in mapped.regions if region.path.startswith("/"))
    # An executable that has a copy of the library's variable is asked first: the copy is the one in use.
    for path in [next(iter(paths), ""), *(path for path in paths if _LIBC.search(path))]:
        zone = interpreter.symbol(pid, mapped, path, "timezone")
        saving = interpreter.symbol(pid, mapped, path, "daylight")
        if zone is not None and saving is not None:
            (west_s,) = struct.unpack("<q", memory.read(pid, zone[0], 8))
            (daylight,) = struct.unpack("<i", memory.read(pid, saving[0], 4))
            return (west_s, bool(daylight)) if abs(west_s) <= 86_400 else None
    return None


def _in_zone(pid: int, moment: datetime, west_s: int) -> set[float]:
    """Times at which the target's clock showed this."""
    from zoneinfo import ZoneInfo

    data = target_files.read_inside(pid, _zone_file(pid))
    try:
        zone = ZoneInfo.from_file(io.BytesIO(data or b""))
    except ValueError:
        return set()
    moments = [moment.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    standard = {(each.utcoffset() or timedelta()) - (each.dst() or timedelta()) for each in moments}
    return {each.timestamp() for each in moments} if standard == {timedelta(seconds=-west_s)} else set()


def _zone_file(pid: int) -> str:
    """The file of TZ as it was at the start, else of the system."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = next((os.fsdecode(each[3:]) for each in variables if each.startswith(b"TZ=")), "").removeprefix(":")
    return name if name.startswith("/") else _ZONES + name if name else "/etc/localtime"
