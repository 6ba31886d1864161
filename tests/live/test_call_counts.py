"""How often a function was called, under every CPython that counts it; elsewhere nothing is said."""

from __future__ import annotations

import pytest
from stucktrace.collectors import call_counts

from tests.harness import pythons

CODE = """
import os
def called(): pass
def never(): pass
for _ in range(5): called()
print("ready", *(hex(id(each.__code__)) for each in (called, never)), *__import__("sys").version_info[:2])
os.read(os.pipe()[0], 1)
"""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=pythons.name_of(path))
        for path in pythons.interpreters()
        if not pythons.name_of(path).startswith(("3.6", "3.7"))
    ],
)
def test_calls(path: str) -> None:
    with pythons.run(CODE, python=path) as child:
        called, never, *version = (int(word, 0) for word in child.words)
        counted = (3, 8) <= tuple(version) <= (3, 11)
        for code, expected in ((called, 5), (never, 0)):
            assert call_counts.calls(child.pid, tuple(version), code) == (expected if counted else None)
