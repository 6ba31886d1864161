"""CPython's lock objects in the target's memory: which object a lock word belongs to, and an RLock's owner and count.

Up to CPython 3.13 a `threading.Lock`, an `RLock` and a `queue.SimpleQueue` each point to a semaphore of their own; the
pointer follows the object's head, and an RLock keeps its owner's pthread address and its count behind it. From 3.14 on
the lock is inside the object: a byte after the head, the owner and the count in the words that follow. What an object
is, its type says (`tp_name`); nothing is concluded from a pointer alone.

The object is looked for where it is cheap: on the waiting thread's own C stack, which holds the `self` of the method
that waits, and only then in the memory that holds the program's objects, newest first, within `SCAN_BYTES` and
`SCAN_S`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import memory
from stucktrace.collectors.regions import Regions

SCAN_BYTES = 96 << 20
SCAN_S = 0.1
"""Of processor time: a busy machine must not change the answer."""
_CHUNK_BYTES = 4 << 20
# The frames between a lock method and its system call take some hundred bytes; the interpreter's own a few thousand.
_STACK_BYTES = 8 << 10
_NAME_BYTES = 64

LOCK_TYPES = ("_thread.lock", "thread.lock")
RLOCK_TYPE = "_thread.RLock"
QUEUE_TYPE = "_queue.SimpleQueue"
_TYPES = (*LOCK_TYPES, RLOCK_TYPE, QUEUE_TYPE)


@dataclass(frozen=True)
class Layout:
    """Sizes that depend on the build: a free-threaded object has a head of four words."""

    head: int = 16

    @classmethod
    def of(cls, free_threaded: bool) -> Layout:
        return cls(32 if free_threaded else 16)

    @property
    def type_name(self) -> int:
        """Offset of tp_name: a type begins with a head and a size."""
        return self.head + 8


@dataclass(frozen=True)
class LockObject:
    """One lock object. `owner` is a pthread address, 0 when nobody holds it; only an RLock has both."""

    address: int
    type_name: str
    owner: int | None = None
    count: int | None = None


class Reader:
    """Reads objects of one process; remembers the names of types."""

    def __init__(self, pid: int, regions: Regions, layout: Layout) -> None:
        self.pid = pid
        self.regions = regions
        self.layout = layout
        self._names: dict[int, str] = {}

    def type_name(self, type_address: int) -> str:
        if type_address not in self._names:
            self._names[type_address] = self._read_type_name(type_address)
        return self._names[type_address]

    def type_names(self, types: Collection[int]) -> None:
        """Reads the names of these types at once, for `type_name` to know."""
        new = [each for each in types if each not in self._names and each % 8 == 0 and self.regions.find(each)]
        names = memory.read_words(self.pid, [each + self.layout.type_name for each in new])
        texts = memory.read_each(self.pid, [name or 0 for name in names], _NAME_BYTES)
        for each, text in zip(new, texts, strict=True):
            self._names[each] = text.partition(b"\0")[0].decode("ascii", errors="replace")

    def class_name(self, address: int) -> str:
        """The type of the object at an address; "" when there is none."""
        word = self._word(address + self.layout.head - 8) if address % 8 == 0 else None
        return self.type_name(word) if word else ""

    def _read_type_name(self, type_address: int) -> str:
        if type_address % 8 or self.regions.find(type_address) is None:
            return ""
        try:
            (name,) = struct.unpack("<Q", memory.read(self.pid, type_address + self.layout.type_name, 8))
            text = memory.read_some(self.pid, name, _NAME_BYTES)
        except ProcessLookupError:
            raise
        except OSError:
            return ""
        return text.partition(b"\0")[0].decode("ascii", errors="replace")

    def around(self, lock: int) -> LockObject | None:
        """The object that has its lock inside, directly after its head (CPython 3.14)."""
        return self._object(lock - self.layout.head, inside=True)

    def pointing(self, address: int, lock: int) -> LockObject | None:
        """The object at `address`, if it is one whose lock pointer is `lock`."""
        found = self._object(address, inside=False)
        return found if found is not None and self._word(address + self.layout.head) == lock else None

    def again(self, found: LockObject, *, inside: bool) -> LockObject | None:
        return self._object(found.address, inside=inside)

    def _word(self, address: int) -> int | None:
        return memory.read_words(self.pid, [address])[0]

    def _object(self, address: int, *, inside: bool) -> LockObject | None:
        if address <= 0 or address % 8:
            return None
        head = self.layout.head
        try:
            data = memory.read(self.pid, address, head + 24)
        except ProcessLookupError:
            raise
        except OSError:
            return None
        type_address, _, owner, count = struct.unpack_from("<4Q", data, head - 8)
        name = self.type_name(type_address)
        if name not in _TYPES:
            return None
        if name != RLOCK_TYPE:
            return LockObject(address, name)
        # 3.14 counts the acquisitions after the first; before, all of them.
        return LockObject(address, name, owner, count + 1 if inside and owner else count)

    def find(self, waiters: Mapping[int, Collection[int]]) -> Mapping[int, LockObject]:
        """`waiters`: lock address -> tids that wait for it. Answers lock address -> its object, for those found."""
        found: dict[int, LockObject] = {}
        unseen: set[int] = set()
        for lock, tids in waiters.items():
            for tid in list(tids)[:3]:
                pointer = stack_pointer(self.pid, tid)
                if pointer is None:
                    unseen.add(lock)
                elif (candidate := self._on_stack(pointer, lock)) is not None:
                    found[lock] = candidate
                    break
        # A stack that was read and has no such object on it belongs to a lock of some other library.
        missing = unseen - found.keys()
        return {**found, **self._in_heap(missing)} if missing else found

    def _on_stack(self, pointer: int, lock: int) -> LockObject | None:
        try:
            words = self.on_stack(pointer, lock)
        except ProcessLookupError:
            raise
        except OSError:
            return None
        return next((found for word in words if (found := self.pointing(word, lock)) is not None), None)

    def on_stack(self, pointer: int, value: int, length: int = _STACK_BYTES) -> list[int]:
        """What a C stack from `pointer` on refers to that has `value` right after its head. Raises OSError."""
        data = memory.read_some(self.pid, pointer, length)
        words = dict.fromkeys(struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8]))
        likely = [word for word in words if word % 8 == 0 and self._holds_objects(word)]
        held = memory.read_words(self.pid, [word + self.layout.head for word in likely])
        return [word for word, each in zip(likely, held, strict=True) if each == value]

    def _holds_objects(self, address: int) -> bool:
        region = self.regions.find(address)
        return region is not None and region.writable and not region.shared

    def _in_heap(self, locks: set[int]) -> Mapping[int, LockObject]:
        found: dict[int, LockObject] = {}
        for lock in locks:
            for address in self.pointers_to(lock):
                candidate = self.pointing(address - self.layout.head, lock)
                if candidate is not None:
                    found[lock] = candidate
                    break
        return found

    def pointers_to(self, address: int) -> Iterator[int]:
        """Where in the program's memory this address is stored, as far as the search may go."""
        ends, left = time.thread_time() + SCAN_S, SCAN_BYTES
        for start, length in self._scanned():
            if left <= 0 or time.thread_time() > ends:
                return
            left -= length
            try:
                data = memory.read_some(self.pid, start, length)
            except ProcessLookupError:
                raise
            except OSError:
                continue
            for position in memory.places_of(data, address):
                yield start + position

    def _scanned(self) -> Iterable[tuple[int, int]]:
        """Chunks of the memory that holds objects: CPython's arenas (anonymous, small ones first), then the heap."""
        arenas = [region for region in self.regions.anonymous_writable() if region.path != "[heap]"]
        heap = [region for region in self.regions.anonymous_writable() if region.path == "[heap]"]
        for region in [*sorted(arenas, key=lambda region: region.size), *heap]:
            for start in range(region.start, region.end, _CHUNK_BYTES):
                yield start, min(_CHUNK_BYTES, region.end - start)


def stack_pointer(pid: int, tid: int) -> int | None:
    """Of a thread inside a system call. Source: /proc/PID/task/TID/syscall."""
    fields = call_fields(pid, tid)
    return int(fields[7], 16) if fields is not None and len(fields) == 9 else None


def call_fields(pid: int, tid: int) -> list[str] | None:
    """The call's number, its six arguments, the stack pointer and the program counter; None when not readable."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall") as file:
            return file.read().split()
    except OSError:
        return None
