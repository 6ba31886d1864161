"""The target's own local time: how far a naive datetime of its lies back.

Source: glibc's or musl's `timezone` (seconds west of UTC) and `daylight` in the target's memory. Where its zone has
daylight saving, what is in force now is not told: then every possible age is given, and only a caller that knows more
can pick one.
"""

from __future__ import annotations

import re
import struct
import time
from datetime import UTC, datetime

from stucktrace.collectors import interpreter, memory
from stucktrace.collectors.regions import Regions

Moment = datetime
_LIBC = re.compile(r"/(?:libc\.so\.6|libc-[\d.]+\.so|ld-musl-[^/]*|libc\.musl-[^/]*)$")
_SAVINGS_S = (0, 1800, 3600, 7200)


def ages_s(pid: int, mapped: Regions, moment: Moment) -> list[float]:
    """Possible ages of a local time, most likely none or one; [] where the zone cannot be read."""
    now = time.time()
    began = moment.replace(tzinfo=UTC).timestamp()
    return [now - (began + offset) for offset in _west_s(pid, mapped)]


def _west_s(pid: int, mapped: Regions) -> list[int]:
    """Seconds that local time may lie behind UTC."""
    paths = dict.fromkeys(region.path for region in mapped.regions if region.path.startswith("/"))
    # An executable that has a copy of the library's variable is asked first: the copy is the one in use.
    for path in [next(iter(paths), ""), *(path for path in paths if _LIBC.search(path))]:
        try:
            zone = interpreter.symbol(pid, mapped, path, "timezone")
            saving = interpreter.symbol(pid, mapped, path, "daylight")
            if zone is None or saving is None:
                continue
            (west,) = struct.unpack("<q", memory.read(pid, zone[0], 8))
            (daylight,) = struct.unpack("<i", memory.read(pid, saving[0], 4))
        except ProcessLookupError:
            raise
        except OSError:
            continue
        if abs(west) > 86_400:
            return []
        return [west - saved for saved in (_SAVINGS_S if daylight else (0,))]
    return []
