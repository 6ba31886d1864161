"""Unwind tables, ELF headers and symbol tables: what they say of real code, and that garbage in them does no harm."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from stucktrace.collectors import cfi, dwarf_expressions, elf, kernel, regions, symbols, unwind
from stucktrace.collectors.dwarf_bytes import Malformed
from stucktrace.collectors.regions import Region

ROUNDS = 300
US = os.getpid()
X86_64 = unwind.MACHINES[62]


@pytest.fixture(scope="module")
def libc() -> elf.Module:
    mapped = regions.read(US)
    path = next(region.path for region in mapped.regions if "/libc.so" in region.path or "/libc-2" in region.path)
    module = elf.module_of(US, mapped, path)
    assert module is not None
    return module


@pytest.fixture(scope="module")
def memory() -> unwind.Unwinder:
    return unwind.Unwinder(US, regions.read(US), time.monotonic() + 600)


def test_an_exported_function_is_found_both_ways(libc: elf.Module) -> None:
    start, size = libc.symbol("getenv") or (0, 0)
    assert start and size
    found = libc.exported(start + size // 2)
    assert found is not None
    assert (found.name, found.address) == ("getenv", start)
    assert libc.symbol("no_such_function") is None


def test_the_row_of_a_function(libc: elf.Module, memory: unwind.Unwinder) -> None:
    start, size = libc.symbol("qsort") or (0, 0)
    function = cfi.Table(libc, memory.read).find(start)
    assert function is not None
    assert function.start == start
    assert function.end <= start + max(size, 1)
    if libc.machine == 62:
        # On entry the return address is on top of the stack.
        assert (function.row.register, function.row.offset) == (7, 8)
        assert function.row.rules[16] == cfi.Rule("offset", -8)


def words(start: int, *values: int) -> Callable[[int], int]:
    return {start + 8 * index: value for index, value in enumerate(values)}.__getitem__


@pytest.mark.parametrize(
    ("code", "value"),
    [
        # A PLT's: rsp + 8 + (((rip & 15) >= 11) << 3).
        (bytes.fromhex("77088000 3f1a3b2a3324 22".replace(" ", "")), 0x1008),
        # A signal frame's: the word at rsp + 160.
        (bytes.fromhex("77a00106"), 0x1234),
        (bytes.fromhex("0a3412"), 0x1234),
        (bytes.fromhex("097f"), 0x7F),
        (bytes.fromhex("0980"), (1 << 64) - 128),
    ],
)
def test_expressions(code: bytes, value: int) -> None:
    registers = {7: 0x1000, 16: 0x5005}
    assert dwarf_expressions.evaluate(code, registers, words(0x10A0, 0x1234)) == value


@pytest.mark.parametrize("code", ["", "22", "06ff", "0a34", "10ffffffffffffffffffffff01", "2f0100", "e0"])
def test_expressions_that_make_no_sense(code: str) -> None:
    with pytest.raises((Malformed, OSError)):
        dwarf_expressions.evaluate(bytes.fromhex(code), {}, _unmapped)


def _unmapped(address: int) -> int:
    raise OSError(14, f"{address:#x}")


def garbled(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, and often cut off."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 12)):
        if changed:
            changed[chance.randrange(len(changed))] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.2 else changed)


def functions(libc: elf.Module) -> Iterator[int]:
    for name in ("qsort", "getaddrinfo", "printf", "pthread_mutex_lock", "regcomp", "iconv_open"):
        found = libc.symbol(name)
        if found:
            yield from range(found[0], found[0] + found[1], max(1, found[1] // 20))


def test_garbled_unwind_tables_are_refused_or_answered(libc: elf.Module, memory: unwind.Unwinder) -> None:
    chance = random.Random(1)
    addresses = list(functions(libc))
    answered = refused = 0
    for _ in range(ROUNDS):

        def read(address: int, length: int) -> bytes:
            data = memory.read(address, length)
            return data if chance.random() < 0.8 else garbled(data, chance).ljust(length, b"\0")[:length]

        began = time.monotonic()
        try:
            table = cfi.Table(libc, read)
            for address in chance.sample(addresses, 10):
                table.find(address)
                answered += 1
        except (Malformed, OSError):
            refused += 1
        assert time.monotonic() - began < 10
    assert answered and refused


def test_a_garbled_stack_is_unwound_to_some_end(libc: elf.Module) -> None:
    """Registers and a stack at random: an end, and never an exception or a walk without one."""
    chance = random.Random(2)
    code = list(functions(libc))
    unwinder = unwind.Unwinder(US, regions.read(US), time.monotonic() + 600)
    for _ in range(ROUNDS):
        values = [chance.choice((chance.getrandbits(64), chance.choice(code), 0)) for _ in range(4096)]
        stack = (ctypes.c_uint64 * len(values))(*values)
        place = ctypes.addressof(stack)
        known = {
            number: chance.choice((place + 8 * chance.randrange(2000), chance.getrandbits(64))) for number in range(17)
        }
        known[X86_64.stack_pointer] = place
        found = unwinder.unwind(X86_64, known, chance.choice(code))
        assert len(found.frames) <= unwind.MAX_FRAMES
        unwinder._blocks.clear()


def test_garbled_headers_and_symbols(libc: elf.Module) -> None:
    chance = random.Random(3)
    with open(libc.path, "rb") as file:
        whole = file.read(400_000)
    opened = 0
    for _ in range(ROUNDS):
        head = garbled(whole[:4096], chance) if chance.random() < 0.7 else whole[:4096]
        data = head + (whole[4096:] if len(head) == 4096 else b"")
        buffer = ctypes.create_string_buffer(data, max(len(data), 64))
        start = ctypes.addressof(buffer)
        region = Region(start, start + len(buffer), "r-xp", 0, 1, "/x.so")
        try:
            module = elf.read(US, region)
            if module is not None:
                opened += 1
                module.exported(start + chance.randrange(len(buffer)))
                module.symbol("getenv")
        except (OSError, struct.error):
            pass
    assert opened


def test_garbled_files() -> None:
    chance = random.Random(4)
    whole = kernel.object_file("look").read_bytes()
    header = whole[:64]
    with tempfile.TemporaryFile() as file:
        for _ in range(ROUNDS):
            changed = bytearray(whole)
            # Among the section headers, which lead to everything else.
            (place,) = struct.unpack_from("<Q", whole, 40)
            for _ in range(chance.randrange(1, 20)):
                changed[chance.randrange(place, len(changed))] = chance.choice((0, 1, 2, 0xFF, chance.randrange(256)))
            file.seek(0)
            file.truncate()
            file.write(changed[: chance.choice((len(changed), chance.randrange(64, len(changed))))])
            file.flush()
            try:
                found = symbols.parse(file.fileno(), header)
                if found is not None:
                    found.name(chance.randrange(1 << 12))
            except (OSError, struct.error):
                pass
