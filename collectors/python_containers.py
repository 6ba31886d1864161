"""The items of Python's containers in another process's memory: list, tuple, set, dict, deque and the queues.

Sources: listobject.h, setobject.h, Modules/_collectionsmodule.c and Modules/_queuemodule.c of CPython 3.8 to 3.14 (a
`SimpleQueue` is a list with a position up to 3.12, a ring buffer from 3.13 on). Bounded; None where the
object is something else, has more than `MOST_ITEMS`, or changed while it was read.
"""

from __future__ import annotations

import struct

from stucktrace.collectors import memory
from stucktrace.collectors.python_values import Values

MOST_ITEMS = 1 << 13
_BLOCK_ITEMS = 64
_MOST_AROUND = 3
"""Queues around a queue."""


class Containers:
    def __init__(self, pid: int, values: Values, minor: tuple[int, int]) -> None:
        self._pid = pid
        self._values = values
        self._minor = minor

    def items(self, address: int) -> tuple[int, ...] | None:
        """The addresses of what it holds; of a dict, and of a kind of it, the values."""
        kind = self._values.type(address)
        try:
            if kind == "tuple":
                return self._values.items(address)
            if kind == "list":
                return self._list(address)
            if kind in ("set", "frozenset"):
                return self._set(address)
            if kind == "collections.deque":
                return self._deque(address)
            if kind == "_queue.SimpleQueue":
                return self._simple_queue(address)
            if kind.endswith("Queue"):
                inner = self._inside(address)
                return self.items(inner) if inner else None
            found = self._values.pairs(address)
            return None if found is None else tuple(value for _, value in found)
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            pass
        return None

    def past_items(self, address: int) -> tuple[int, ...]:
        """What may have been in a queue lately: the words that a deque's block still has, in use or not.

        They tell of objects that are known to live by other means, and of nothing else.
        """
        address = self._inside(address) or address
        if self._values.type(address) != "collections.deque":
            return ()
        (block,) = self._words(address + 24, 1)
        return tuple(word for word in self._words(block + 8, _BLOCK_ITEMS) if word and word % 8 == 0)

    def _inside(self, address: int) -> int | None:
        """What an object of a class like `queue.Queue` keeps its items in; None for any other object."""
        inner: int | None = address
        for _ in range(_MOST_AROUND):
            kind = self._values.type(inner) if inner else ""
            if not inner or kind == "_queue.SimpleQueue" or not kind.endswith("Queue"):
                break
            inner = self._values.attribute(inner, "queue")
        else:
            return None
        return inner if inner != address else None

    def _list(self, address: int) -> tuple[int, ...] | None:
        size, start = self._words(address + 16, 2)
        return self._array(start, size)

    def _array(self, start: int, size: int) -> tuple[int, ...] | None:
        if not 0 <= size <= MOST_ITEMS:
            return None
        return self._words(start, size) if size else ()

    def _set(self, address: int) -> tuple[int, ...] | None:
        used, mask, table = self._words(address + 24, 3)
        if used > MOST_ITEMS or mask >= 8 * MOST_ITEMS:
            return None
        words = self._words(table, 2 * (mask + 1))
        # A slot that was emptied holds a dummy with the hash -1.
        found = tuple(
            key for key, digest in zip(words[::2], words[1::2], strict=True) if key and digest != (1 << 64) - 1
        )
        return found if len(found) == used else None

    def _deque(self, address: int) -> tuple[int, ...] | None:
        size, block, _, left = self._words(address + 16, 4)
        if not 0 <= size <= MOST_ITEMS or not 0 <= left <= _BLOCK_ITEMS:
            return None
        found: list[int] = []
        while len(found) < size:
            words = self._words(block, _BLOCK_ITEMS + 2)
            found.extend(words[1 + left : 1 + min(_BLOCK_ITEMS, left + size - len(found))])
            block, left = words[-1], 0
        return tuple(found)

    def _simple_queue(self, address: int) -> tuple[int, ...] | None:
        if self._minor < (3, 13):
            items, position = self._words(address + 32, 2)
            held = self._list(items)
            return None if held is None or position > len(held) else held[position:]
        _, first, start, capacity, count = self._words(address + 24, 5)
        if not 0 <= count <= capacity <= 2 * MOST_ITEMS or (count and first >= capacity):
            return None
        ring = self._array(start, capacity) if capacity <= MOST_ITEMS else None
        return None if ring is None else (ring + ring)[first : first + count]

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", memory.read(self._pid, address, 8 * count)) if count else ()
