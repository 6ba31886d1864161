"""The line of an instruction, held against what this interpreter says of real code objects."""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator

import pytest
from stucktrace.collectors import code_lines

MINOR = (sys.version_info.major, sys.version_info.minor)


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


@pytest.mark.parametrize("module", [argparse, inspect, textwrap])
def test_every_instruction_of_a_module_has_the_line_that_python_says(module: types.ModuleType):
    checked = 0
    for code in codes(compile(inspect.getsource(module), "module", "exec")):
        for start, end, line in code.co_lines():
            for address in range(start, end, 2):
                assert code_lines.line(MINOR, code.co_linetable, code.co_firstlineno, address) == line
                checked += 1
    assert checked > 1_000


def test_a_frame_that_has_not_begun_is_at_its_first_line():
    assert code_lines.line((3, 12), b"", 7, -2) == 7


@pytest.mark.parametrize(
    ("address", "line"), [(0, 10), (4, 11), (8, 9), (10, 9)], ids=["first", "second", "backwards", "the last"]
)
def test_up_to_3_9_pairs_move_the_address_and_the_line(address: int, line: int):
    assert code_lines.line((3, 9), bytes((0, 0, 4, 1, 4, 256 - 2)), 10, address) == line


@pytest.mark.parametrize(
    ("address", "line"), [(0, 10), (2, 11), (4, None), (6, 12), (8, None)], ids=["", "next", "none", "after", "behind"]
)
def test_3_10_has_ranges_without_a_line(address: int, line: int | None):
    assert code_lines.line((3, 10), bytes((2, 0, 2, 1, 2, 128, 2, 1)), 10, address) == line


def test_a_table_cut_short_is_no_error():
    assert code_lines.line((3, 11), bytes((0x80 | 14 << 3 | 1, 0x7F)), 10, 0) is not None
    assert code_lines.line((3, 11), b"", 10, 0) is None
    assert code_lines.line((3, 9), b"\x01", 10, 0) == 10
