"""What all AMQP clients' objects are read with: attributes in a dict or in slots, truths, ages, a socket's descriptor.

A slot is found by the class's own table of members (`tp_members`, structmember.h: name, type, offset), along its bases.
Layouts are those of CPython 3.8 to 3.14. What cannot be read is None or left out, never a guess.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection, Iterator

from stucktrace.collectors import call_counts, dead_frames, memory, python_modules
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.pool_stacks import Stacks
from stucktrace.collectors.python_classes import Objects

_TP_MEMBERS, _TP_FLAGS = 240, 168
_MEMBER = struct.Struct("<QiiqiiQ")
_OBJECT_TYPES = (6, 16)
"""T_OBJECT and T_OBJECT_EX."""
_HEAP_TYPE = 1 << 9
_MOST_MEMBERS = 64
_NAME_BYTES = 64
_FD = 16
"""`sock_fd` of a socket object follows its head (Modules/socketmodule.h)."""
_FUNCTION_CODE, _FUNCTION_CODE_BEFORE = 48, 16
"""From CPython 3.10 on, and before (funcobject.h)."""
_SOCKET_TYPE = "_socket.socket"
_MOST_FD = 1 << 24
_LONGEST_UPTIME_S = 1e9


class Things:
    """Reads the objects of one process in one reading of its stacks."""

    def __init__(self, stacks: Stacks, same_clock: bool, found: Interpreter | None = None) -> None:
        self.stacks = stacks
        self.values = stacks.values
        self.classes = Objects(stacks.walk.reader, stacks.values)
        self._pid = stacks.pid
        self._minor = stacks.read.minor
        self._found = found
        self._same_clock = same_clock
        self._slots: dict[int, dict[str, int]] = {}

    def attributes(self, address: int | None, wanted: Collection[str]) -> dict[str, int]:
        """The instance's own attributes, of those wanted; one that is empty or not there is left out."""
        if not address or address % 8:
            return {}
        found = self.values.attributes(address, wanted)
        slots = {name: offset for name, offset in self._slots_of(address).items() if name in wanted}
        words = memory.read_words(self._pid, [address + offset for offset in slots.values()])
        found.update({name: word for name, word in zip(slots, words, strict=True) if word})
        return found

    def attribute(self, address: int | None, name: str) -> int | None:
        return self.attributes(address, (name,)).get(name)

    def is_none(self, address: int | None) -> bool:
        return bool(address) and self.values.type(address or 0) == "NoneType"

    def truth(self, address: int | None) -> bool | None:
        """A bool."""
        if not address or self.values.type(address) != "bool":
            return None
        word = memory.read_words(self._pid, [address + 16])[0]
        if word is None:
            return None
        # From 3.12 on the count of digits stands above three bits; False has no digit.
        return (word >> 3 if self._minor >= (3, 12) else word) == 1

    def number(self, address: int | None) -> float | None:
        """An int or a float."""
        if not address:
            return None
        whole = self.values.integer(address)
        return float(whole) if whole is not None else self.values.number(address)

    def age_s(self, address: int | None, *, or_wall_clock: bool = False) -> float | None:
        """How long ago a reading of `time.monotonic()` was; None where it was 0, is no time, or of another clock.

        `or_wall_clock`: it may be one of `time.time()`, which is beyond any time since a boot.
        """
        moment = self.number(address)
        wall = or_wall_clock and moment is not None and moment > _LONGEST_UPTIME_S
        now = time.time() if wall else time.monotonic()
        if not wall and not self._same_clock:
            return None
        return round(now - moment, 3) if moment and 0 < moment <= now else None

    def fd(self, address: int | None) -> int | None:
        """The descriptor of a `socket.socket`, of a kind of it, or of one that a library wrapped around it."""
        for _ in range(3):
            if not address:
                return None
            if _SOCKET_TYPE in self.classes.base_names(self.classes.class_of(address)):
                data = memory.read(self._pid, address + _FD, 4)
                (number,) = struct.unpack("<i", data)
                return number if 0 <= number < _MOST_FD else None
            address = self.attribute(address, "_sock")
        return None

    def event(self, address: int | None) -> bool | None:
        """Whether an `asyncio.Event` is set."""
        return self.truth(self.attribute(address, "_value"))

    def integers(self, address: int) -> tuple[int, ...] | None:
        """A tuple of ints."""
        numbers = [self.values.integer(item) for item in self.values.items(address) or ()]
        return tuple(number for number in numbers if number is not None) if None not in numbers else None

    def first_of_tuple(self, address: int) -> int | None:
        """The first item of a kind of tuple (a named one)."""
        return memory.read_words(self._pid, [address + (32 if self._minor >= (3, 14) else 24)])[0] or None

    def code_of(self, function: int | None) -> int | None:
        """The code of a Python function; None before CPython 3.11, or where that cannot be read."""
        if not function or self._minor < dead_frames.SINCE or self.values.type(function) != "function":
            return None
        code = memory.read_words(self._pid, [function + _FUNCTION_CODE])[0]
        return code if code and self.values.type(code) == "code" else None

    def calls(self, function: int | None) -> int | None:
        """How often a Python function has been called; None where that is not counted."""
        if not function or self.values.type(function) != "function":
            return None
        place = _FUNCTION_CODE if self._minor >= (3, 10) else _FUNCTION_CODE_BEFORE
        code = memory.read_words(self._pid, [function + place])[0]
        return call_counts.calls(self._pid, self._minor, code) if code and self.values.type(code) == "code" else None

    def class_in(self, module: str, *names: str) -> int | None:
        """A class by its module's name, its own, and those of the classes inside it."""
        known = python_modules.read(self.stacks.walk.reader, self.values, self._found)
        found = known.module(module) if known is not None else None
        for name in names:
            found = self.classes.attribute(found, name) if found else None
        return found

    def _slots_of(self, address: int) -> dict[str, int]:
        kind = self.classes.class_of(address)
        if kind not in self._slots:
            found: dict[str, int] = {}
            for base in reversed(self.classes.bases(kind)):
                found.update(self._members(base))
            self._slots[kind] = found
        return self._slots[kind]

    def _members(self, kind: int) -> dict[str, int]:
        flags, table = memory.read_words(self._pid, [kind + _TP_FLAGS, kind + _TP_MEMBERS])
        if not table or not flags or not flags & _HEAP_TYPE:
            return {}
        found: dict[int, int] = {}
        data = memory.read_some(self._pid, table, _MOST_MEMBERS * _MEMBER.size)
        for place in range(0, len(data) - _MEMBER.size + 1, _MEMBER.size):
            name, form, _, offset, *_ = _MEMBER.unpack_from(data, place)
            if not name:
                break
            if form in _OBJECT_TYPES and 0 < offset < 1 << 16:
                found[name] = offset
        names = memory.read_each(self._pid, list(found), _NAME_BYTES)
        return {
            text.partition(b"\0")[0].decode("ascii", errors="replace"): offset
            for text, offset in zip(names, found.values(), strict=True)
        }


def in_frames(
    things: Things, tid: int, files: Collection[str], connection_of: Callable[[Things, int | None], int | None]
) -> Iterator[int]:
    """The connections that frames of a thread in these files have in hand as `self`, innermost first."""
    for place in things.stacks.of(tid):
        if any(part in place.file for part in files):
            found = connection_of(things, things.stacks.variable(place, "self"))
            if found is not None:
                yield found
