"""What the code calls its lock, from one line of it."""

import pytest
from stucktrace.collectors.source_lines import name_in


@pytest.mark.parametrize(
    ("line", "function", "name"),
    [
        ("        with self._lock:", "Client.send", "Client._lock"),
        ("        with self._lock:", "send", "self._lock"),
        ("    with lock:", "work", "lock"),
        ("    with _module.state.lock as taken:", "work", "_module.state.lock"),
        ("        self.lock.acquire()", "Handler.acquire", "Handler.lock"),
        ("    if lock.acquire(timeout=5):", "work", "lock"),
        ("    with locks['a']:", "work", "locks['a']"),
        ("    with one, two:", "work", ""),
        ("    with make_lock():", "work", ""),
        ("    return queue.get()", "work", ""),
        ("    a.acquire(); b.acquire()", "work", ""),
        ("        with self.lock:", "outer.<locals>.inner", "self.lock"),
        ("", "work", ""),
        ("with " + "x" * 500 + ":", "work", "x" * 60),
    ],
)
def test_the_name_of_the_lock(line, function, name):
    assert name_in(line, function) == name
