"""Which type of filesystem a device number belongs to, as a process has it mounted. Source: /proc/PID/mountinfo."""

from __future__ import annotations

import os

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect


def type_of(pid: int, device: int) -> str:
    """ "tmpfs", "ext4", "overlay" ...; "" where it cannot be told (a subvolume has a number of its own)."""
    try:
        lines = procfs.read(pid, "mountinfo").decode(errors="replace").splitlines()
    except CannotInspect:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        if len(words) > 2 and words[2] == wanted:
            return rest.partition(" ")[0]
    return ""
