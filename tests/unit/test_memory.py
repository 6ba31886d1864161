"""Words found in a piece of memory, and many ranges of it read at once."""

from __future__ import annotations

import ctypes
import os

import pytest
from stucktrace.collectors import memory


@pytest.mark.parametrize("word", [0x7F12_3456_7890, 0x7F00_0000_0000, 0xFFFF_FFFF_FFFF_FFFF, 1])
def test_words_at_multiples_of_eight(word: int):
    packed = word.to_bytes(8, "little")
    data = packed + b"\0" * 12 + packed + b"\0" * 4 + packed + packed[:7]
    assert list(memory.places_of(data, word)) == [0, 32]


def test_more_than_one_read_takes():
    buffer = ctypes.create_string_buffer(b"x" * memory.MAX_BYTES)
    start = ctypes.addressof(buffer)
    length = memory.MAX_BYTES // 4
    found = memory.read_ranges(os.getpid(), [(start + each, length) for each in range(0, 40, 4)])
    assert [len(each) for each in found] == [length] * 10
    assert memory.read_ranges(os.getpid(), [(start, 8), (8, 8), (start, 8)]) == [b"x" * 8, b"", b"x" * 8]
