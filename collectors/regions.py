"""What an address of the target lies in: /proc/PID/maps, parsed and searchable.

Paths are the target's own view, as the kernel prints them: " (deleted)" at the end means that the file is gone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Region:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    """For example "rw-p"; the last letter is "s" for a mapping shared between processes."""
    offset: int
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        return self.permissions[3:4] == "s"

    @property
    def writable(self) -> bool:
        return self.permissions[1:2] == "w"

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Regions:
    """All mappings of one process, in order of address."""

    regions: tuple[Region, ...]

    @cached_property
    def _starts(self) -> list[int]:
        return [region.start for region in self.regions]

    def find(self, address: int) -> Region | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        region = self.regions[index]
        return region if address < region.end else None

    def of_file(self, path: str) -> tuple[Region, ...]:
        return tuple(region for region in self.regions if region.path == path)

    def anonymous_writable(self) -> Iterator[Region]:
        """Private memory that holds a program's own objects: anonymous mappings and the heap."""
        return (
            region
            for region in self.regions
            if region.writable and not region.shared and (not region.path or region.path.startswith(("[heap", "[anon")))
        )

    def describe(self, address: int, stack_owner: int | None = None) -> str:
        """In words of `LockFact.mapping`. `stack_owner`: pthread address of a thread whose stack may hold `address`."""
        region = self.find(address)
        if region is None:
            return ""
        if region.shared and (not region.path or region.path.startswith(("/dev/zero", "[anon_shmem"))):
            return "shared anonymous"
        if region.path and not region.path.startswith("[anon"):
            return region.path
        if stack_owner is not None and region.start <= stack_owner < region.end and address < stack_owner:
            return "thread stack"
        return "anonymous"


def read(pid: int) -> Regions:
    """Source: /proc/PID/maps. Raises OSError; a process that has ended its address space has no regions."""
    text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return parse(text)


def parse(text: str) -> Regions:
    """A line that is no mapping is left out."""
    regions = []
    for line in text.split("\n"):
        fields = line.split(None, 5)
        if len(fields) < 5:
            continue
        start, _, end = fields[0].partition("-")
        # The kernel writes a newline in a path as \012.
        path = fields[5].replace("\\012", "\n") if len(fields) > 5 else ""
        with suppress(ValueError):
            regions.append(Region(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), int(fields[4]), path))
    return Regions(tuple(regions))
