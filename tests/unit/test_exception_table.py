"""How much of a frame's value stack is alive, and which `with` a block is of: from tables of this very interpreter."""

import dis
import sys
import threading

from stucktrace.collectors import code_lines, with_lines
from stucktrace.collectors.exception_table import alive, ends_at, entries

one, two = threading.Lock(), threading.Lock()


def plain():
    return 1


def single():
    with one:
        marker_inside()
    marker_outside()


def nested():
    with one:
        marker_before()
        with two:
            marker_inside()
        marker_between()


def in_a_loop():
    for _ in range(3):
        with one:
            try:
                marker_inside()
            except ValueError:
                marker_handler()


def marker_inside(): ...
def marker_outside(): ...
def marker_before(): ...
def marker_between(): ...
def marker_handler(): ...


def depth_at(function, marker):
    """The depth at the call of `marker`; an instruction has two bytes."""
    code = function.__code__
    position = next(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == marker
    )
    return alive(code.co_exceptiontable, position // 2)


def depth_at_entry(function, index):
    """The depth while the block's lock is being acquired."""
    entries = [i for i in dis.get_instructions(function.__code__) if i.opname in ("BEFORE_WITH", "SETUP_WITH")]
    return alive(function.__code__.co_exceptiontable, entries[index].offset // 2)


def test_no_block_no_depth():
    assert alive(plain.__code__.co_exceptiontable, 0) == 0


def test_inside_and_outside_one_block():
    assert depth_at(single, "marker_inside") == 1
    assert depth_at(single, "marker_outside") == 0


def test_nested_blocks_count_up():
    assert depth_at(nested, "marker_before") == 1
    assert depth_at(nested, "marker_inside") == 2
    assert depth_at(nested, "marker_between") == 1


def test_what_else_is_on_the_stack_counts_too():
    assert depth_at(in_a_loop, "marker_inside") == 2
    # A handler runs above the exception that it handles.
    assert depth_at(in_a_loop, "marker_handler") >= 2


def test_a_lock_that_is_being_acquired_is_not_alive():
    assert depth_at_entry(single, 0) == 0
    assert depth_at_entry(nested, 1) == 1


def test_a_torn_table_answers_zero():
    assert alive(b"\xc1", 3) == 0
    assert alive(b"\xff" * 50, 3) == 0


def line_of_with(function, marker, depth):
    """The line, counted from the function's first, of the `with` whose block is `depth` values deep at the marker."""
    code = function.__code__
    position = next(i.offset for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL" and i.argval == marker)
    target = ends_at(code.co_exceptiontable, position // 2, depth)
    assert target is not None
    return code_lines.line(sys.version_info[:2], code.co_linetable, 0, 2 * target)


def test_each_open_block_leads_to_its_own_with():
    assert line_of_with(single, "marker_inside", 1) == 1
    assert line_of_with(nested, "marker_before", 1) == 1
    assert line_of_with(nested, "marker_inside", 1) == 1
    assert line_of_with(nested, "marker_inside", 2) == 3
    assert line_of_with(nested, "marker_between", 1) == 1


def test_a_try_inside_the_block_is_not_taken_for_it():
    assert line_of_with(in_a_loop, "marker_inside", 2) == 2
    assert line_of_with(in_a_loop, "marker_handler", 2) == 2


def test_blocks_of_the_old_bytecode():
    # EXTENDED_ARG 1, SETUP_WITH 4: a jump of 260 instructions (3.10) or bytes (before) from behind it.
    code = bytes([1, 0, 144, 1, 143, 4, 9, 0, 143, 2, 9, 0])
    assert list(with_lines.leading(code, 1)) == [(6 + 260, 4), (10 + 2, 8)]
    assert list(with_lines.leading(code, 2)) == [(6 + 520, 4), (10 + 4, 8)]


def test_a_table_that_makes_no_sense_ends_at_once():
    assert list(entries(b"\x7f" * (1 << 20))) == []
