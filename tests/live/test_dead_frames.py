"""Frames that returned and lie in memory still, under every CPython whose frames lie one behind the other."""

from __future__ import annotations

import re

import pytest
from stucktrace.collectors import dead_frames, interpreter, python, python_stacks, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.pool_stacks import Stacks

from tests.harness import pythons

CODE = """
import os
def inner(mark, kept):
    return len(mark)
def middle(mark):
    return inner(mark, [])
def outer():
    middle("MARK")
    print("ready")
    os.read(os.pipe()[0], 1)
outer()
"""
SINCE = [
    pytest.param(path, id=pythons.name_of(path))
    for path in pythons.interpreters()
    if (found := re.match(r"3\.(\d+)", pythons.name_of(path))) is None or int(found[1]) >= dead_frames.SINCE[1]
]


@pytest.mark.parametrize("path", SINCE)
def test_the_last_calls_of_a_sleeping_thread(path: str) -> None:
    with pythons.run(CODE, python=path) as child:
        pythons.until(lambda: pythons.in_call(child.pid, "read"), "its read")
        threads = pythons.threads_of(child.pid)
        fact = python.collect(pythons.process_of(child.pid), threads, native=False, show_locals=False)
        mapped = regions.read(child.pid)
        found = interpreter.find(child.pid, mapped)
        idents = {thread.ident: thread.tid for thread in fact.threads if thread.ident}
        read = python_stacks.read(Reader(child.pid, mapped, Layout()), found, idents, lambda _: lambda *_: [])
        assert read is not None and read.complete
        stacks = Stacks(read, threads, fact)
        innermost = stacks.of(child.pid)[0]
        assert innermost.function == "outer"
        # What outer called lay right behind it.
        middle = innermost.frame.address + dead_frames.size(stacks, innermost.frame.code)
        code = read.walk.objects(middle + read.walk.offsets.code, 1)[0]
        assert read.named(code).function == "middle"
        assert read.values.text(dead_frames.variables(stacks, middle, code)["mark"], 10) == "MARK"
        names = [each.function for each in dead_frames.read(stacks, child.pid)]
        assert names[:2] == ["middle", "inner"], names
