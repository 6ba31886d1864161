"""libbpf.so.1 through ctypes: the few functions that load an object, open an iterator and read a map. Nothing else.

The library is opened at the first use and its messages are kept instead of printed, so a failure can give its reason.
Every function here raises `BpfError`, with errno and the last messages, where libbpf returns an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

SONAME = "libbpf.so.1"

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_MESSAGES: deque[str] = deque(maxlen=40)

_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("libbpf_set_print", c_void_p, (c_void_p,)),
    ("bpf_object__open_file", c_void_p, (c_char_p, c_void_p)),
    ("bpf_object__load", c_int, (c_void_p,)),
    ("bpf_object__close", None, (c_void_p,)),
    ("bpf_object__find_program_by_name", c_void_p, (c_void_p, c_char_p)),
    ("bpf_object__next_program", c_void_p, (c_void_p, c_void_p)),
    ("bpf_object__find_map_by_name", c_void_p, (c_void_p, c_char_p)),
    ("bpf_program__name", c_char_p, (c_void_p,)),
    ("bpf_program__section_name", c_char_p, (c_void_p,)),
    ("bpf_program__set_type", c_int, (c_void_p, c_int)),
    ("bpf_program__set_autoload", c_int, (c_void_p, ctypes.c_bool)),
    ("bpf_program__attach", c_void_p, (c_void_p,)),
    ("bpf_program__attach_tracepoint", c_void_p, (c_void_p, c_char_p, c_char_p)),
    ("bpf_program__attach_kprobe", c_void_p, (c_void_p, ctypes.c_bool, c_char_p)),
    ("bpf_program__attach_iter", c_void_p, (c_void_p, c_void_p)),
    ("bpf_raw_tracepoint_open", c_int, (c_char_p, c_int)),
    ("bpf_link__fd", c_int, (c_void_p,)),
    ("bpf_link__destroy", c_int, (c_void_p,)),
    ("bpf_iter_create", c_int, (c_int,)),
    ("bpf_enable_stats", c_int, (c_int,)),
    ("bpf_obj_get_info_by_fd", c_int, (c_int, c_void_p, c_void_p)),
    ("bpf_map__fd", c_int, (c_void_p,)),
    ("bpf_map_update_elem", c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    ("bpf_map_lookup_elem", c_int, (c_int, c_void_p, c_void_p)),
    ("bpf_map_delete_elem", c_int, (c_int, c_void_p)),
    ("bpf_map_get_next_key", c_int, (c_int, c_void_p, c_void_p)),
    ("ring_buffer__new", c_void_p, (c_int, c_void_p, c_void_p, c_void_p)),
    ("ring_buffer__consume", c_int, (c_void_p,)),
    ("ring_buffer__free", None, (c_void_p,)),
    ("perf_buffer__new", c_void_p, (c_int, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p)),
    ("perf_buffer__epoll_fd", c_int, (c_void_p,)),
    ("perf_buffer__consume", c_int, (c_void_p,)),
    ("perf_buffer__free", None, (c_void_p,)),
    ("libbpf_probe_bpf_map_type", c_int, (c_int, c_void_p)),
    ("bpf_map__set_type", c_int, (c_void_p, c_int)),
    ("bpf_map__set_key_size", c_int, (c_void_p, c_uint32)),
    ("bpf_map__set_value_size", c_int, (c_void_p, c_uint32)),
    ("bpf_map__set_max_entries", c_int, (c_void_p, c_uint32)),
    ("bpf_map__initial_value", c_void_p, (c_void_p, c_void_p)),
)
_ARRAY, PERF_EVENT_ARRAY, RINGBUF = 2, 4, 27
"""BPF_MAP_TYPE_..."""
_NOEXIST = 1
"""BPF_NOEXIST"""
_NO_TYPE = 0x7FFF
"""A program type that no kernel has."""


class BpfError(OSError):
    """`what` failed; str() is one line with the kernel's or libbpf's own reason."""

    def __init__(self, number: int, what: str) -> None:
        self.what = what
        self.messages = tuple(_MESSAGES)
        super().__init__(number, f"{what}: {os.strerror(number)}")

    def __str__(self) -> str:
        return str(self.strerror)


class _MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info."""

    _fields_ = tuple((name, c_uint32) for name in ("type", "id", "key_size", "value_size", "max_entries"))


class _LinkInfoTask(ctypes.Structure):
    _fields_ = (("tid", c_uint32), ("pid", c_uint32), ("pid_fd", c_uint32))


class _IterAttachOpts(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("link_info", c_void_p), ("link_info_len", c_uint32))


def _keep_message(_level: int, message_format: bytes, arguments: int) -> int:
    text = ctypes.create_string_buffer(512)
    ctypes.pythonapi.PyOS_vsnprintf(text, c_size_t(len(text)), message_format, c_void_p(arguments))
    _MESSAGES.append(text.value.decode(errors="replace").strip())
    return 0


_KEEP_MESSAGE = _PRINT(_keep_message)


@cache
def library() -> ctypes.CDLL:
    """libbpf with its prototypes set. OSError when it is not installed."""
    lib = ctypes.CDLL(SONAME, use_errno=True)
    for name, result, arguments in _FUNCTIONS:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(ctypes.cast(_KEEP_MESSAGE, c_void_p))
    return lib


def enable_run_time_statistics() -> int:
    """The kernel measures the runs of all BPF programs of the node while this file descriptor is open."""
    return checked(library().bpf_enable_stats(0), "measure the run time of BPF programs")


def program_info(fd: int, info: ctypes.Structure) -> None:
    """Fills `info`, a beginning of struct bpf_prog_info."""
    size = c_uint32(ctypes.sizeof(info))
    checked(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "read about a BPF program")


def map_type(fd: int) -> int:
    """Of enum bpf_map_type, which struct bpf_map_info begins with."""
    kind, size = c_uint32(), c_uint32(4)
    checked(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(kind), ctypes.byref(size)), "read about a BPF map")
    return kind.value


@cache
def has_ring_buffers() -> bool:
    """Linux 5.8."""
    return bool(library().libbpf_probe_bpf_map_type(RINGBUF, None) == 1)


def checked(result: int | None, what: str) -> int:
    """libbpf 1.x answers NULL or -errno, and sets errno either way."""
    if result is None:
        raise BpfError(ctypes.get_errno() or errno.EINVAL, what)
    if result < 0:
        raise BpfError(-result if result > -4096 else ctypes.get_errno(), what)
    return result


class Map:
    """A BPF map of fixed-size keys and values."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def update(self, key: ctypes.Structure | ctypes._SimpleCData[Any], value: Any) -> None:
        result = library().bpf_map_update_elem(self.fd, ctypes.byref(key), ctypes.byref(value), 0)
        checked(result, f"write to the map {self.name}")

    def add(self, key: ctypes.Structure | ctypes._SimpleCData[Any], value: Any) -> None:
        """As `update`, but leaves a key alone that is there already."""
        result = library().bpf_map_update_elem(self.fd, ctypes.byref(key), ctypes.byref(value), _NOEXIST)
        if result != -errno.EEXIST:
            checked(result, f"write to the map {self.name}")

    def lookup(self, key: Any, value: Any) -> bool:
        """Fills `value`; False when there is no such key."""
        return bool(library().bpf_map_lookup_elem(self.fd, ctypes.byref(key), ctypes.byref(value)) == 0)

    def delete(self, key: Any) -> None:
        library().bpf_map_delete_elem(self.fd, ctypes.byref(key))

    def clear(self) -> None:
        """Deletes all entries of a hash, and sets those of an array to 0. Streams are left alone."""
        info = _MapInfo()
        size = c_uint32(ctypes.sizeof(info))
        checked(
            library().bpf_obj_get_info_by_fd(self.fd, ctypes.byref(info), ctypes.byref(size)), "read about a BPF map"
        )
        if info.type == _ARRAY:
            zero = ctypes.create_string_buffer(info.value_size)
            for index in range(info.max_entries):
                library().bpf_map_update_elem(self.fd, ctypes.byref(c_uint32(index)), zero, 0)
        elif info.type not in (RINGBUF, PERF_EVENT_ARRAY):
            key = ctypes.create_string_buffer(info.key_size)
            while library().bpf_map_get_next_key(self.fd, None, key) == 0:
                library().bpf_map_delete_elem(self.fd, key)

    def keys(self, key_type: type[Any]) -> list[Any]:
        """All keys. Entries that come or go meanwhile may be missed, never doubled endlessly."""
        found: list[Any] = []
        seen: set[bytes] = set()
        previous: Any = None
        while True:
            key = key_type()
            before = None if previous is None else ctypes.byref(previous)
            if library().bpf_map_get_next_key(self.fd, before, ctypes.byref(key)) != 0:
                return found
            if bytes(key) in seen:
                return found
            seen.add(bytes(key))
            found.append(key)
            previous = key


class Link:
    """An attached program; `close` detaches it."""

    def __init__(self, pointer: int) -> None:
        self._pointer: int | None = pointer

    @property
    def fd(self) -> int:
        return int(library().bpf_link__fd(self._pointer))

    def close(self) -> None:
        if self._pointer is not None:
            library().bpf_link__destroy(self._pointer)
            self._pointer = None


class Object:
    """A loaded object file. `programs`: the ones to load, all when None.

    `without`: means that the kernel is made to refuse, as one does that does not have them: a section or
    its kind (tp_btf, tp_btf/mark_victim, iter, ...), or `ringbuf`.
    """

    def __init__(
        self, path: str, programs: frozenset[str] | None = None, without: frozenset[str] = frozenset()
    ) -> None:
        lib = library()
        _MESSAGES.clear()
        name = Path(path).name
        self._pointer: int | None = checked(lib.bpf_object__open_file(os.fsencode(path), None), f"open {name}")
        self._maps: dict[str, Map] = {}
        try:
            program = lib.bpf_object__next_program(self._pointer, None)
            while program and (without or programs is not None):
                wanted = programs is None or lib.bpf_program__name(program).decode() in programs
                lib.bpf_program__set_autoload(program, wanted)
                section = lib.bpf_program__section_name(program).decode()
                if section in without or section.partition("/")[0] in without:
                    lib.bpf_program__set_type(program, _NO_TYPE)
                program = lib.bpf_object__next_program(self._pointer, program)
            if self.has_map("ring") and ("ringbuf" in without or not has_ring_buffers()):
                self._stream_by_perf_array()
            checked(lib.bpf_object__load(self._pointer), f"load {name}")
        except BpfError:
            self.close()
            raise

    def close(self) -> None:
        if self._pointer is not None:
            library().bpf_object__close(self._pointer)
            self._pointer = None

    def _stream_by_perf_array(self) -> None:
        """Before it is loaded: makes the map of bpf/ring.h what kernels have that have no ring buffers."""
        lib = library()
        ring = lib.bpf_object__find_map_by_name(self._pointer, b"ring")
        lib.bpf_map__set_type(ring, PERF_EVENT_ARRAY)
        lib.bpf_map__set_key_size(ring, 4)
        lib.bpf_map__set_value_size(ring, 4)
        # 0: as many as there are CPUs.
        lib.bpf_map__set_max_entries(ring, 0)
        size = c_size_t()
        flag = lib.bpf_map__initial_value(
            lib.bpf_object__find_map_by_name(self._pointer, b".rodata.ring"), ctypes.byref(size)
        )
        c_uint32.from_address(checked(flag, "choose the kind of the ring")).value = 1

    def _program(self, name: str) -> int:
        program = library().bpf_object__find_program_by_name(self._pointer, name.encode())
        return checked(program, f"find the program {name}")

    def has_map(self, name: str) -> bool:
        return bool(library().bpf_object__find_map_by_name(self._pointer, name.encode()))

    @property
    def streams_by_perf(self) -> bool:
        """It has a stream of records (bpf/ring.h), and that is a perf event array."""
        return self.has_map("ring") and map_type(self.map("ring").fd) == PERF_EVENT_ARRAY

    def map(self, name: str) -> Map:
        if name not in self._maps:
            pointer = checked(
                library().bpf_object__find_map_by_name(self._pointer, name.encode()), f"find the map {name}"
            )
            self._maps[name] = Map(library().bpf_map__fd(pointer), name)
        return self._maps[name]

    def lost_records(self) -> int:
        """Records that its programs had to drop (the map of bpf/lost.h)."""
        count = c_uint64()
        if self.has_map("lost"):
            self.map("lost").lookup(c_uint32(0), count)
        return count.value

    def attach(self, program: str) -> Link:
        """Attaches a program to the hook that its section names."""
        return Link(checked(library().bpf_program__attach(self._program(program)), f"attach {program}"))

    def attach_tracepoint(self, program: str, category: str, name: str) -> Link:
        """Attaches a program to a classic tracepoint, as tracefs lists them; to any number of them."""
        pointer = library().bpf_program__attach_tracepoint(self._program(program), category.encode(), name.encode())
        return Link(checked(pointer, f"attach {program} to {name}"))

    def attach_kprobe(self, program: str, function: str, *, at_return: bool) -> Link:
        pointer = library().bpf_program__attach_kprobe(self._program(program), at_return, function.encode())
        return Link(checked(pointer, f"attach {program} to {function}"))

    def open_iterator(self, program: str, pid: int | None = None) -> int:
        """A file descriptor to read the iterator's output from; with a pid over that process's threads only."""
        lib = library()
        options = None
        if pid is not None:
            info = _LinkInfoTask(0, pid, 0)
            options = _IterAttachOpts(ctypes.sizeof(_IterAttachOpts), ctypes.addressof(info), ctypes.sizeof(info))
        attached = lib.bpf_program__attach_iter(self._program(program), options and ctypes.byref(options))
        link = Link(checked(attached, f"attach the iterator {program}"))
        try:
            return checked(lib.bpf_iter_create(link.fd), f"open the iterator {program}")
        finally:
            link.close()
